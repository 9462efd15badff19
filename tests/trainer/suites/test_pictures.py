"""Pictures and scores in a folder: made once, whole or not there, under one set of settings."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cogrpo_core.rewards.reward import Images, Scores
from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.suites.pictures import Picture, make, samples, settle
from cogrpo_trainer.suites.scores import ScoreLines, by_group, read_picture, score_by_reward

PICTURES = [
    Picture(f"pictures/{one.case}_{one.j}.png", f"prompt {one.case}", one.seed, one.case, "")
    for one in samples(3, 2, 7)
]


class Stopped(Exception):
    """The run was killed."""


class Painter:
    """A picture whose color is its seed; stops at its `last` call."""

    def __init__(self, last: int = 99) -> None:
        self.calls: list[list[int]] = []
        self.last = last

    def __call__(self, texts: list[str], seeds: list[int]) -> list[Image.Image]:
        self.calls.append(seeds)
        if len(self.calls) == self.last:
            raise Stopped
        return [Image.new("RGB", (4, 4), (seed, 0, 0)) for seed in seeds]


class Redness:
    name = "redness"
    version = "1"

    def __init__(self, last: int = 99) -> None:
        self.calls: list[Sequence[str]] = []
        self.last = last

    def __call__(self, images: Images, prompts: Sequence[str]) -> Scores:
        self.calls.append(prompts)
        if len(self.calls) == self.last:
            raise Stopped
        return np.asarray(images[..., 0].mean(axis=(1, 2)), np.float32)


def test_no_two_samples_have_one_seed_and_the_first_count_up() -> None:
    made = list(samples(3, 2, 7))
    assert [one.seed for one in made if one.j == 0] == [7, 8, 9]
    assert len({one.seed for one in made}) == 6
    assert next(samples(2, 1, 2**32 - 1)).seed == 2**32 - 1
    assert [one.seed for one in samples(2, 1, 2**32 - 1)] == [2**32 - 1, 0]


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        make(tmp_path, PICTURES, Painter(last=2), batch_size=2)
    assert len(list(tmp_path.glob("pictures/*.png"))) == 2
    again, told = Painter(), list[int]()
    assert make(tmp_path, PICTURES, again, batch_size=3, on_progress=told.append) == 4
    assert again.calls == [[one.seed for one in PICTURES[2:5]], [PICTURES[5].seed]]
    assert told == [2, 3, 1]
    assert make(tmp_path, PICTURES, Painter(last=1), batch_size=3) == 0
    for one in PICTURES:
        assert read_picture(tmp_path, one).getpixel((0, 0)) == (one.seed, 0, 0)
    assert not list(tmp_path.rglob("*.partial"))


def test_half_a_picture_is_none(tmp_path: Path) -> None:
    """A kill in the middle of a write leaves a draft, which the next run writes over."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / ".0_0.png.partial").write_bytes(b"half")
    assert make(tmp_path, PICTURES, Painter(), batch_size=6) == 6
    assert not list(tmp_path.rglob("*.partial"))


def test_other_settings_are_an_error_that_names_them(tmp_path: Path) -> None:
    settle(tmp_path / "out", {"steps": 48, "schedule": "meissonic"})
    settle(tmp_path / "out", {"steps": 48, "schedule": "meissonic"})
    with pytest.raises(EvaluationError, match="steps 48, and now it is 16"):
        settle(tmp_path / "out", {"steps": 16, "schedule": "meissonic"})
    (tmp_path / "out" / "settings.json").write_text("[]")
    with pytest.raises(EvaluationError, match="steps None"):
        settle(tmp_path / "out", {"steps": 16})
    (tmp_path / "out" / "settings.json").write_text("{")
    with pytest.raises(EvaluationError, match="not the settings"):
        settle(tmp_path / "out", {"steps": 16})
    with pytest.raises(EvaluationError, match="cannot be used"):
        settle(tmp_path / "out" / "settings.json" / "below", {"steps": 16})


def test_scores_go_on_where_they_stopped(tmp_path: Path) -> None:
    make(tmp_path, PICTURES, Painter(), batch_size=6)
    with pytest.raises(Stopped):
        score_by_reward(tmp_path, PICTURES, Redness(last=2), batch_size=4)
    file = tmp_path / "scores-redness.jsonl"
    with file.open("a") as lines:
        lines.write('{"filename": "pictures/2_0.png", "sco')  # killed in the middle of a line
    again = Redness()
    scores = score_by_reward(tmp_path, PICTURES, again, batch_size=4)
    assert again.calls == [["prompt 2", "prompt 2"]]
    assert scores == {one.path: one.seed for one in PICTURES}
    assert [json.loads(line)["filename"] for line in file.read_text().splitlines()] == [
        one.path for one in PICTURES
    ]
    assert by_group(PICTURES, scores) == {"": [8.5, 9.5, 10.5]}


def test_scores_of_two_versions_are_not_mixed(tmp_path: Path) -> None:
    make(tmp_path, PICTURES, Painter(), batch_size=6)
    score_by_reward(tmp_path, PICTURES, Redness(), batch_size=4)
    newer = Redness()
    newer.version = "2"
    with pytest.raises(EvaluationError, match="scores by redness 1, and now it is redness 2"):
        score_by_reward(tmp_path, PICTURES, newer, batch_size=4)


def test_scores_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    make(tmp_path, PICTURES, Painter(), batch_size=6)

    class Failing(Redness):
        name = "failing"

        def __call__(self, images: Images, prompts: Sequence[str]) -> Scores:
            return np.full(len(images), np.nan, np.float32)

    with pytest.raises(EvaluationError, match="failing gave nan"):
        score_by_reward(tmp_path, PICTURES, Failing(), batch_size=4)
    (tmp_path / "scores.jsonl").write_text("no JSON\n")
    with pytest.raises(EvaluationError, match="not a file of scores"):
        ScoreLines(tmp_path / "scores.jsonl", "redness 1")
    (tmp_path / PICTURES[0].path).write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match="made anew"):
        score_by_reward(tmp_path, PICTURES, Redness(), batch_size=4)
