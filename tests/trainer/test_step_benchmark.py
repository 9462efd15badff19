"""The benchmark of a step: what it counts, not how fast this machine is."""

import json
from pathlib import Path

import torch
import typer
from typer.testing import CliRunner

from cogrpo_trainer.benchmarks.step import main

app = typer.Typer()
app.command()(main)


def test_json_has_a_timing_for_each_thread_count(tiny_checkpoint: Path) -> None:
    before = torch.get_num_threads()
    arguments = ["--model", str(tiny_checkpoint), "--steps", "3", "--repeats", "1", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--threads", "1", "--threads", "2"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [timing["threads"] for timing in report["timings"]] == [1, 2]
    for timing in report["timings"]:
        assert 0 < timing["step_ms"] < timing["picture_ms"]
    assert torch.get_num_threads() == before


def test_unknown_model_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--model", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert result.stderr.startswith("bench: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
