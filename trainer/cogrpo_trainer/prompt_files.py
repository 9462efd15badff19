"""Prompts from files: text, JSON, JSON lines or parquet, with bounds and one clear error each.

Training mixes such files (train/prompts.py); the published suites read theirs here too.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from cogrpo_core.models.hub import CONTACT_SECONDS
from cogrpo_core.models.weights import one_line
from cogrpo_core.trajectory import MAX_TEXT

KEYS = ("prompt", "text")
"""Where an object has its prompt; HPDv2 and ImageRewardDB call it `prompt`."""
NAMES = ("id", "prompt_id")
MAX_FILE_BYTES = 1 << 30
MAX_ROWS = 5_000_000

HUB_SCHEME = "hf://"
HUB_FILE = re.compile(
    r"hf://datasets/(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<file>[^/].*)"
)

Row = str | dict[str, Any]


class PromptFileError(ValueError):
    """A file of prompts that cannot be used, in one line."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one or several files, each once, and what became of all that was read."""

    prompts: list[str]
    read: int
    repeated: int
    """Dropped: the same words, whatever their case and spaces, came before."""
    unusable: int
    """Dropped: empty, or longer than a trajectory holds."""

    def __str__(self) -> str:
        return (
            f"{len(self.prompts):,} prompts: {self.read:,} read, {self.repeated:,} repeated ones "
            f"and {self.unusable:,} empty or too long ones dropped"
        )


def find_file(name: str) -> Path:
    """The file of a name: a path, or `hf://datasets/OWNER/NAME[@REVISION]/FILE` of the Hub.

    The Hub's cache is enough where there is no network. Raises `PromptFileError`.
    """
    if not name.startswith(HUB_SCHEME):
        return Path(name)
    match = HUB_FILE.fullmatch(name)
    if match is None or ".." in match["file"].split("/"):
        raise PromptFileError(f"{name}: give {HUB_SCHEME}datasets/OWNER/NAME[@REVISION]/FILE")
    try:
        return Path(
            hf_hub_download(
                match["id"],
                match["file"],
                repo_type="dataset",
                revision=match["revision"],
                etag_timeout=CONTACT_SECONDS,
            )
        )
    except Exception as error:
        raise PromptFileError(
            f"{name}: cannot be fetched ({type(error).__name__}: {one_line(error)[:200]}); where "
            f"there is a network, `hf download --repo-type dataset {match['id']} {match['file']}`"
        ) from None


def read_prompts(files: Sequence[Path]) -> PromptSet:
    """The prompts of all files, in order, each once. Raises `PromptFileError`."""
    prompts: dict[str, str] = {}
    read = unusable = 0
    for file in files:
        for number, row in enumerate(read_rows(file)):
            text = prompt_of(row, file, number).strip()
            read += 1
            if not text or len(text) > MAX_TEXT:
                unusable += 1
            else:
                prompts.setdefault(plain(text), text)
    if not prompts:
        raise PromptFileError(f"{', '.join(map(str, files))}: holds no prompt")
    return PromptSet(list(prompts.values()), read, read - unusable - len(prompts), unusable)


def plain(prompt: str) -> str:
    """Prompts that differ in case or space alone are one."""
    return " ".join(prompt.casefold().split())


def read_rows(file: Path) -> list[Row]:
    """The rows of a file, by its ending: text or objects. Raises `PromptFileError`.

    `.json` holds a list, `.jsonl` a JSON value a line, `.parquet` a column `prompt` or `text`; any
    other file is text, a prompt a line.
    """
    kind = file.suffix.lower()
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise PromptFileError(f"{file}: is larger than {MAX_FILE_BYTES:,} bytes")
        if kind == ".parquet":
            return _parquet(file)
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptFileError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise PromptFileError(f"{file}: is not UTF-8 text") from None
    if kind == ".json":
        rows = _parsed(text, file)
        if not isinstance(rows, list):
            raise PromptFileError(f"{file}: holds a JSON {type(rows).__name__}, not a list")
        return rows
    # Not splitlines: a JSON text may hold U+2028, and a prompt too.
    lines = [line for line in text.split("\n") if line.strip()]
    if kind == ".jsonl":
        return [_parsed(line, f"{file}, line {i}") for i, line in enumerate(lines, 1)]
    return list(lines)


def prompt_of(row: Row, file: Path, number: int) -> str:
    """The prompt of a row. Raises `PromptFileError`, which names the row, where it has none."""
    text = row
    if isinstance(row, dict):
        text = next((row[key] for key in KEYS if key in row), None)  # type: ignore[assignment]
    if not isinstance(text, str):
        raise PromptFileError(
            f"{file}: row {number} has no prompt; a row is text, or has it under "
            f"{' or '.join(KEYS)}"
        )
    return text


def _parsed(text: str, where: object) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptFileError(f"{where}: not valid JSON ({' '.join(str(error).split())})") from None


def _parquet(file: Path) -> list[Row]:
    """Only the columns that are wanted; nothing in them can run code."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            if table.metadata.num_rows > MAX_ROWS:
                raise PromptFileError(f"{file}: has more than {MAX_ROWS:,} rows")
            columns = [name for name in (*KEYS, *NAMES) if name in table.schema_arrow.names]
            if not set(columns) & set(KEYS):
                raise PromptFileError(f"{file}: has no column {' or '.join(KEYS)}")
            rows: list[Row] = table.read(columns=columns).to_pylist()
            return rows
    except ArrowException as error:
        message = " ".join(str(error).split())[:200]
        raise PromptFileError(f"{file}: not a parquet file ({message})") from None
