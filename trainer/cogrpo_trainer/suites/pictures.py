"""The pictures of a suite: each made once, in a folder that remembers the settings.

A picture is whole or not there, so that a run that was killed goes on where it stopped, and ends
with the pictures of one that was not: prompt and seed decide a picture, not its batch.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogrpo_core.durable import replace_whole
from cogrpo_core.images import encode_png
from cogrpo_trainer.evaluate import SEEDS, EvaluationError, Generate

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Picture:
    """A picture that a suite asks for."""

    path: str
    """Below the run's folder, with slashes."""
    prompt: str
    seed: int
    case: int
    """The number of its prompt in the suite."""
    group: str
    """The style or task of its prompt."""


@dataclass(frozen=True)
class Sample:
    """The j-th picture of prompt `case`."""

    case: int
    j: int
    seed: int


def samples(cases: int, each: int, seed: int) -> Iterator[Sample]:
    """`each` samples of every case, case by case.

    Sample j of case i has the seed `seed` + i + j `cases` modulo 2^32: no two have the same, and
    the first ones are those of the embedded suites.
    """
    for case in range(cases):
        for j in range(each):
            yield Sample(case, j, (seed + case + j * cases) % SEEDS)


def settle(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the folder and writes down the settings; raises `EvaluationError` if it has others."""
    file = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_whole(file, json.dumps(settings, indent=1).encode())
        known = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{folder}: cannot be used ({error.strerror})") from None
    except ValueError:
        raise EvaluationError(f"{file}: not the settings of a suite; name another --out") from None
    for name, value in settings.items():
        if not isinstance(known, dict) or known.get(name) != value:
            before = known.get(name) if isinstance(known, dict) else None
            raise EvaluationError(
                f"{folder}: its pictures were made with {name} {before}, and now it is {value}; "
                f"name another --out, or give the same settings to go on"
            )


def make(
    folder: Path,
    pictures: Sequence[Picture],
    generate: Generate,
    *,
    batch_size: int,
    on_progress: Callable[[int], None] = lambda made: None,
) -> int:
    """Makes the pictures that are not there yet, and gives their number.

    `on_progress` is told how many pictures are there, batch by batch.
    """
    missing = [one for one in pictures if not (folder / one.path).is_file()]
    on_progress(len(pictures) - len(missing))
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        images = generate([one.prompt for one in batch], [one.seed for one in batch])
        for one, image in zip(batch, images, strict=True):
            write_whole(folder / one.path, encode_png(image))
        on_progress(len(batch))
    return len(missing)


def write_whole(path: Path, data: bytes) -> None:
    """The file with this content, or as it was. Raises `EvaluationError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, data)
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written ({error.strerror})") from None
