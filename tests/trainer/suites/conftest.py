"""What the tests of the published suites share: the command, on the embedded model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogrpo_client.cli import main

PROMPTS = Path(__file__).parents[2] / "data" / "prompts"


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`cogrpo evaluate` in two steps with these arguments; gives the JSON that it prints."""

    def run(*arguments: object) -> dict[str, Any]:
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", "--steps", "2", "--json", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert stop.value.code == 0, err
        said: dict[str, Any] = json.loads(out)
        return said

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`cogrpo evaluate` with these arguments; gives the one line that it ends with."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", "--steps", "2", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == ""
        assert len(err.splitlines()) == 1, err
        return err

    return run


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
