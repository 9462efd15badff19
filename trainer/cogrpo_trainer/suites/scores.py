"""Scores of a suite's pictures as JSON lines, appended as they are made, and their means."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogrpo_core.rewards.reward import Reward
from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.suites.pictures import Picture

NAME = "filename"  # what GenEval's own results call it


class ScoreLines:
    """A file of one JSON object a picture; what a kill left half written is dropped.

    `by` is the scorer with its version: scores of two versions are never mixed. Raises
    `EvaluationError`.
    """

    def __init__(self, file: Path, by: str) -> None:
        self.file = file
        self.by = by
        self.rows: dict[str, dict[str, Any]] = {}
        try:
            content = file.read_bytes() if file.exists() else b""
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(file, whole)
        except OSError as error:
            raise EvaluationError(f"{file}: cannot be used ({error.strerror})") from None
        for line in content[:whole].splitlines():
            self._take(line)

    def missing(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Those without a score."""
        return [one for one in pictures if one.path not in self.rows]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows, each with its picture's path under `filename`."""
        marked = [dict(row) | {"by": self.by} for row in rows]
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in marked)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EvaluationError(f"{self.file}: cannot be written ({error.strerror})") from None
        self.rows |= {row[NAME]: row for row in marked}

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            name, by = row[NAME], row["by"]
        except (ValueError, KeyError, TypeError):
            raise EvaluationError(f"{self.file}: not a file of scores; remove it") from None
        if by != self.by:
            raise EvaluationError(
                f"{self.file}: holds scores by {by}, and now it is {self.by}; remove the file to "
                f"score anew"
            )
        self.rows[name] = row


def read_picture(folder: Path, picture: Picture) -> Image.Image:
    """The picture, RGB. Raises `EvaluationError`."""
    path = folder / picture.path
    try:
        return Image.open(path, formats=["PNG"]).convert("RGB")
    except OSError:
        raise EvaluationError(f"{path}: cannot be read; remove it, and it is made anew") from None


def score_by_reward(
    folder: Path,
    pictures: Sequence[Picture],
    reward: Reward,
    *,
    batch_size: int,
    on_progress: Callable[[int], None] = lambda scored: None,
) -> dict[str, float]:
    """The reward of every picture by its path; `scores-REWARD.jsonl` has them.

    Raises `EvaluationError` for a score that is not finite, and what the reward raises.
    """
    lines = ScoreLines(folder / f"scores-{reward.name}.jsonl", f"{reward.name} {reward.version}")
    missing = lines.missing(pictures)
    on_progress(len(pictures) - len(missing))
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        pixels = np.stack([np.asarray(read_picture(folder, one)) for one in batch])
        found = np.asarray(reward(pixels, [one.prompt for one in batch]), np.float64)
        for one, score in zip(batch, found, strict=True):
            if not np.isfinite(score):
                raise EvaluationError(f"{reward.name} gave {score} for {folder / one.path}")
        pairs = zip(batch, found, strict=True)
        lines.add([{NAME: one.path, "score": float(score)} for one, score in pairs])
        on_progress(len(batch))
    return {one.path: float(lines.rows[one.path]["score"]) for one in pictures}


def by_group(pictures: Sequence[Picture], scores: Mapping[str, float]) -> dict[str, list[float]]:
    """The mean score of each prompt's pictures, group by group.

    Pictures of one prompt are alike, so intervals are over prompts.
    """
    cases: dict[tuple[str, int], list[float]] = {}
    for one in pictures:
        cases.setdefault((one.group, one.case), []).append(scores[one.path])
    groups: dict[str, list[float]] = {}
    for (group, _), values in cases.items():
        groups.setdefault(group, []).append(float(np.mean(values)))
    return groups
