"""`cogrpo bench start`: a service's first picture, in a new data folder and in a kept one."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cogrpo_server.bench.start import Started, medians, start
from cogrpo_server.bench.summary import BenchError


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(start)
    return app


@pytest.mark.slow
def test_a_service_is_started_in_a_new_folder_and_again(
    command: typer.Typer, tiny_checkpoint: Path
) -> None:
    options = ["--model", str(tiny_checkpoint), "--threads", "1", "--rounds", "1"]
    result = CliRunner().invoke(command, [*options, "--kind", "plain", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(one["kind"], one["folder"]) for one in found["starts"]] == [
        ("plain", "new"),
        ("plain", "kept"),
    ]
    assert all(0 < one["ready"] < one["first_picture"] for one in found["starts"])
    assert set(found["medians"]) == {"plain, new folder", "plain, kept folder"}


def test_medians_are_of_each_kind_and_folder() -> None:
    starts = [Started("plain", "new", 1.0, seconds) for seconds in (2.0, 9.0, 3.0)]
    starts.append(Started("compiled", "kept", 1.0, 7.0))
    assert medians(starts) == {"plain, new folder": 3.0, "compiled, kept folder": 7.0}


def test_an_unknown_kind_is_a_users_error(command: typer.Typer) -> None:
    result = CliRunner().invoke(command, ["--kind", "fast"])
    assert isinstance(result.exception, BenchError)
    assert "'fast'" in str(result.exception) and "plain, compiled" in str(result.exception)
