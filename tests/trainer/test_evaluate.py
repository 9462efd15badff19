"""Evaluation: fixed seeds, right intervals, and a command that says one JSON object."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from cogrpo_client.cli import main
from cogrpo_core.shapes.checker import TASKS
from cogrpo_core.shapes.render import render
from cogrpo_core.shapes.scenes import sample_scene
from cogrpo_core.shapes.suites import Prompt, suite
from cogrpo_trainer.evaluate import (
    EvaluationError,
    Interval,
    Report,
    Settings,
    checkable,
    load_pipeline,
    prompted,
    run_suite,
    stratified,
    summarize,
    wilson,
)
from cogrpo_trainer.grid import COLUMNS, GREEN, MARGIN, RED, draw_grid, save_grid


class Painter:
    """A generator that draws what a caption says, and is blank for every `blank_every`-th seed."""

    def __init__(self, prompts: list[Prompt], blank_every: int = 0, scale: int = 1) -> None:
        self.specs = {prompt.text: prompt.spec for prompt in prompts}
        self.blank_every = blank_every
        self.scale = scale
        self.calls: list[tuple[list[str], list[int]]] = []

    def __call__(self, texts: list[str], seeds: list[int]) -> list[Image.Image]:
        self.calls.append((texts, seeds))
        return [self._paint(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def _paint(self, text: str, seed: int) -> Image.Image:
        if self.blank_every and seed % self.blank_every == 0:
            return Image.new("RGB", (64, 64), "white")
        image = render(sample_scene(self.specs[text], np.random.default_rng(seed)))
        return Image.fromarray(image.repeat(self.scale, 0).repeat(self.scale, 1))


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return suite("geneval-shapes", 10)


def test_a_perfect_generator_scores_one(prompts):
    tasks, overall = summarize(run_suite(prompts, Painter(prompts)))
    assert list(tasks) == list(TASKS)
    assert all(row.score == 1.0 and row.n == 10 for row in tasks.values())
    assert (overall.score, overall.high, overall.n) == (1.0, 1.0, 60)
    assert overall.low < 1.0


def test_prompt_i_has_seed_base_plus_i_in_every_batch_size(prompts):
    last = 2**32 - 1
    for batch_size in (7, 60):
        painter = Painter(prompts)
        made: list[int] = []
        run_suite(prompts, painter, seed=last, batch_size=batch_size, on_progress=made.append)
        assert [text for texts, _ in painter.calls for text in texts] == [p.text for p in prompts]
        assert [seed for _, seeds in painter.calls for seed in seeds] == [last, *range(59)]
        assert (max(made), sum(made)) == (batch_size, 60)


def test_failures_count_where_they_happen(prompts):
    samples = run_suite(prompts, Painter(prompts, blank_every=5))
    tasks, overall = summarize(samples)
    assert all(row.score == pytest.approx(0.8) for row in tasks.values())
    assert overall.score == pytest.approx(0.8)


def test_long_prompts_are_scored_by_their_facts():
    prompts = suite("long-shapes", 10)
    tasks, overall = summarize(run_suite(prompts, Painter(prompts)))
    assert list(tasks) == ["long"]
    assert overall == tasks["long"]
    assert overall.score == 1.0


@pytest.mark.parametrize(("passed", "n"), [(0, 60), (1, 60), (30, 60), (59, 60), (60, 60), (1, 1)])
def test_intervals_of_shares_are_wilsons(passed, n):
    row = wilson([1.0] * passed + [0.0] * (n - passed))
    expected = binomtest(passed, n).proportion_ci(0.95, method="wilson")
    assert (row.score, row.n) == (passed / n, n)
    assert row.low == pytest.approx(expected.low, abs=1e-6)
    assert row.high == pytest.approx(expected.high, abs=1e-6)


def test_the_overall_interval_covers_the_mean_of_the_tasks():
    """Over many samples of known shares, 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(0)
    shares = np.array([0.98, 0.8, 0.6, 0.9, 0.5, 0.4])
    draws = rng.random((600, 6, 30)) < shares[:, None]
    rows = [stratified([wilson(task.astype(float)) for task in draw]) for draw in draws]
    covered = np.mean([row.low <= shares.mean() <= row.high for row in rows])
    assert 0.92 <= covered <= 0.98


def test_equal_tasks_narrow_the_interval_by_the_root_of_their_number():
    task = Interval(0.5, 0.4, 0.6, 60)
    overall = stratified([task] * 6)
    assert overall.n == 360
    assert overall.high - 0.5 == pytest.approx(0.1 / math.sqrt(6))


def test_larger_pictures_are_averaged_down(prompts):
    samples = run_suite(prompts, Painter(prompts, scale=2))
    assert all(sample.score == 1.0 for sample in samples)


@pytest.mark.parametrize("size", [(16, 16), (64, 128), (96, 96)])
def test_sizes_that_cannot_be_judged_are_errors(size):
    with pytest.raises(EvaluationError, match="64x64"):
        checkable(Image.new("RGB", size))


def test_the_report_rounds_and_keeps_the_order():
    row = Interval(2 / 3, 0.123456, 0.9, 3)
    plain = Report("geneval-shapes", 16, "meissonic", "shapes", {"counting": row}, row).to_json()
    assert list(plain) == ["suite", "steps", "schedule", "model", "tasks", "overall"]
    assert plain["overall"] == {"score": 0.6667, "low": 0.1235, "high": 0.9, "n": 3}


def test_the_grid_shows_every_task_and_marks_each_cell(prompts, tmp_path):
    samples = run_suite(prompts, Painter(prompts, blank_every=2))
    canvas = draw_grid(samples).convert("RGB")
    cell = canvas.width // COLUMNS
    frames = [canvas.getpixel((x * cell + MARGIN - 1, MARGIN - 1)) for x in range(COLUMNS)]
    assert frames == [RED if sample.score < 1 else GREEN for sample in samples[::10]] + frames[6:]
    save_grid(samples, tmp_path / "docs" / "grid.png")
    assert Image.open(tmp_path / "docs" / "grid.png").size == canvas.size
    assert draw_grid(samples * 2).height == canvas.height  # 60 and 64 cells need 8 rows


@pytest.fixture(scope="module")
def judged_checkpoint(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with pictures of a size that the suites can judge."""
    folder = tmp_path_factory.mktemp("judged") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    file = folder / "generation_config.json"
    config = json.loads(file.read_text()) | {"height": 64, "width": 64, "sizes": [[64, 64]]}
    file.write_text(json.dumps(config))
    return folder


def test_pictures_do_not_depend_on_the_number_of_workers(judged_checkpoint, prompts):
    pipe = load_pipeline(str(judged_checkpoint), device="cpu")
    texts, threads = [prompt.text for prompt in prompts[:3]], torch.get_num_threads()
    settings = Settings(num_inference_steps=2)
    one, two = (prompted(pipe, settings, workers)(texts, [5, 6, 7]) for workers in (1, 2))
    assert [image.tobytes() for image in one] == [image.tobytes() for image in two]
    assert torch.get_num_threads() == threads


def test_an_error_in_a_worker_is_not_lost(judged_checkpoint):
    pipe = load_pipeline(str(judged_checkpoint), device="cpu")
    with pytest.raises(ValueError, match="empty"):
        prompted(pipe, Settings(2), workers=2)(["a star", " "], [0, 1])


def evaluate(*arguments):
    """The command's exit status."""
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, arguments)])
    return stop.value.code


def test_the_command_prints_one_json_object_and_is_repeatable(judged_checkpoint, tmp_path, capsys):
    options = ("--model", judged_checkpoint, "--steps", 2, "--n-per-task", 1, "--json")
    outputs = (("--images", tmp_path / "all"), ("--grid", tmp_path / "docs" / "grid.png"))
    assert evaluate(*options, *outputs[0], *outputs[1]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["suite", "steps", "schedule", "model", "tasks", "overall"]
    assert (said["steps"], said["schedule"], said["overall"]["n"]) == (2, "meissonic", 6)
    assert list(said["tasks"]) == list(TASKS)
    assert all(list(row) == ["score", "low", "high", "n"] for row in said["tasks"].values())
    assert len(list((tmp_path / "all").glob("*.png"))) == 6
    assert (tmp_path / "docs" / "grid.png").is_file()
    assert evaluate(*options) == 0
    assert json.loads(capsys.readouterr().out) == said


def test_the_command_prints_a_table(judged_checkpoint, capsys):
    options = ("--steps", 1, "--n-per-task", 1, "--suite", "long-shapes")
    constants = ("--guidance-scale", 1, "--remask-temperature", 0.5, "--schedule", "cosine-power:2")
    assert evaluate("--model", judged_checkpoint, *options, *constants) == 0
    out = capsys.readouterr().out
    assert "overall" in out
    assert "cosine-power:2" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "imagenet"], "geneval-shapes"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--steps", "0"], "1 to 256"),
        (["--steps", "1000000000"], "1 to 256"),
        (["--schedule", "sudden"], "unknown schedule"),
        (["--guidance-scale", "nan"], "guidance_scale"),
        (["--remask-temperature", "nan"], "remask-temperature"),
        (["--n-per-task", "0"], "n-per-task"),
        (["--seed", "-1"], "seed"),
        (["--device", "abacus"], "abacus"),
        (["--images", "/dev/null/pictures"], "/dev/null"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(judged_checkpoint, arguments, message, capsys):
    assert evaluate("--model", judged_checkpoint, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_model_of_another_size_is_one_line_and_status_2(tiny_checkpoint, capsys):
    assert evaluate("--model", tiny_checkpoint, "--json") == 2
    assert "16x16" in capsys.readouterr().err
