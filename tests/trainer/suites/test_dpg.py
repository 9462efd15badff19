"""DPG-Bench's pictures: grids that its own scorer cuts apart again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from cogrpo_core.models.hub import EMBEDDED_FOLDER
from cogrpo_core.models.text_encoder import TextEncoder
from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.suites import dpg
from tests.trainer.suites.conftest import PROMPTS, files

DPG = ("--suite", "dpg", "--prompts", PROMPTS / "dpg")


def test_grids_are_named_as_the_prompts_and_hold_the_samples(evaluate: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = evaluate(*DPG, "--out", out)
    assert said == {
        "suite": "dpg",
        "pictures": 8,
        "folder": str(out),
        "grids": str(out / "grids"),
        "resolution": 64,
    }
    assert sorted(path.name for path in (out / "grids").iterdir()) == ["0.png", "long.png"]
    sheet = np.asarray(Image.open(out / "grids" / "0.png"))
    assert sheet.shape == (128, 128, 3)
    corners = [sheet[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    for j, corner in enumerate(corners):
        assert np.array_equal(corner, np.asarray(Image.open(out / "samples" / "0" / f"{j}.png")))
    before = files(out)
    (out / "grids" / "0.png").unlink()
    assert evaluate(*DPG, "--out", out) == said
    assert files(out) == before


def test_a_grid_is_read_row_by_row() -> None:
    colors = ["red", "green", "blue", "white"]
    sheet = dpg.grid([Image.new("RGB", (4, 4), color) for color in colors])
    seen = [sheet.getpixel(at) for at in ((0, 0), (4, 0), (3, 4), (7, 7))]
    assert seen == [ImageColor.getrgb(color) for color in colors]


def test_one_picture_is_its_own_grid(evaluate: Any, tmp_path: Path) -> None:
    evaluate(*DPG, "--out", tmp_path, "--seeds", 1)
    grid = np.asarray(Image.open(tmp_path / "grids" / "0.png"))
    assert np.array_equal(grid, np.asarray(Image.open(tmp_path / "samples" / "0" / "0.png")))


def test_other_numbers_and_folders_are_refused(refused: Any, tmp_path: Path) -> None:
    assert "--seeds is 4 or 1" in refused(*DPG, "--out", tmp_path / "out", "--seeds", 3)
    assert "dpg_bench/prompts" in refused("--suite", "dpg", "--out", tmp_path / "out")
    with pytest.raises(EvaluationError, match=r"no \*\.txt"):
        dpg.pictures(tmp_path, 4, 0)
    (tmp_path / "0.txt").write_text(" ")
    with pytest.raises(EvaluationError, match="is empty"):
        dpg.pictures(tmp_path, 4, 0)
    (tmp_path / "0.txt").write_bytes(b"\xff")
    with pytest.raises(EvaluationError, match="UTF-8"):
        dpg.pictures(tmp_path, 4, 0)


def test_long_prompts_are_cut_to_what_is_read() -> None:
    encoder = TextEncoder.from_pretrained(EMBEDDED_FOLDER / "shapes")
    text = (PROMPTS / "dpg" / "long.txt").read_text()
    assert encoder.token_count(text) > encoder.max_length
    cut = encoder.shortened(text)
    assert text.startswith(cut) and text[len(cut)] == " "
    longer = text[: text.index(" ", len(cut) + 1)]
    assert encoder.token_count(cut) <= encoder.max_length < encoder.token_count(longer)
    assert encoder.shortened("a red circle") == "a red circle"
    assert encoder.shortened("x" * 5000)
