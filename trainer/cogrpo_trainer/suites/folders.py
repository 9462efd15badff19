"""Where a suite's models lie: a folder, or the Hub's cache; nothing is downloaded here."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from cogrpo_core.models.hub import split_name
from cogrpo_trainer.evaluate import EvaluationError


def find(name: str, files: Sequence[str]) -> Path:
    """The folder of that name with all of these files, or the Hub's cache of that id.

    An id may end in `@REVISION`, as `cogrpo fetch` takes it. Raises `EvaluationError`.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            repo, revision = split_name(name)
            cached = snapshot_download(
                repo, revision=revision, allow_patterns=list(files), local_files_only=True
            )
            folder = Path(cached)
        except Exception:  # no such id, no cache, or no name that could be one
            folder = Path(name)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        wanted = " ".join(f"--include {file}" for file in files)
        raise EvaluationError(
            f"{name}: no {missing[0]} in a folder of that name or in the Hub's cache; where there "
            f"is a network, run `cogrpo fetch {name} {wanted}`"
        )
    return folder


def version(folder: Path, files: Sequence[str]) -> str:
    """Changes with the content of any of these files."""
    total = hashlib.sha256()
    for name in files:
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]
