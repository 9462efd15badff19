"""`cogrpo compare`: a sheet with a row a model and a picture a step count."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cogrpo_client.cli import build_app


def test_two_models_side_by_side(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    arguments = ["compare", "a ring", "--steps", "1,3", "--out", str(out)]
    arguments += ["--base", str(model_folder), "--model", str(model_folder)]
    result = CliRunner().invoke(build_app("compare"), arguments)
    assert result.exit_code == 0, result.output
    sheet = Image.open(out)
    assert sheet.width > 2 * 192
    assert sheet.height > 2 * 192
    assert len(set(sheet.convert("RGB").getdata())) > 10


@pytest.mark.parametrize("steps", ["two", "1,,3", ""])
def test_steps_that_are_no_numbers(steps: str) -> None:
    result = CliRunner().invoke(build_app("compare"), ["compare", "a ring", "--steps", steps])
    assert result.exit_code != 0
    assert "whole numbers" in str(result.exception) + result.output
