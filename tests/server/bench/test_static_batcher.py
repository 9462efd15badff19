"""The static batcher: the pipeline's tokens, full batches, one pass a step."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogrpo_core.models.checkpoint import load_checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_server.bench.static_batcher import (
    Made,
    ShrinkingPipeline,
    StaticBatcher,
    StaticPipeline,
)

SECONDS = 30.0
STEPS = [4, 9, 1, 12, 4, 7]


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> CoGRPOPipeline:
    return CoGRPOPipeline.from_pretrained(tiny_checkpoint)


class Watched(ShrinkingPipeline):
    """Tells its batches; the first one waits until `opened`, so that the next can form."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.opened, self.reached = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def generate(self, jobs: Any, callback_on_step_end: Any = None) -> Any:
        self.batches.append(len(jobs))
        self.reached.set()
        assert self.opened.wait(SECONDS)
        return super().generate(jobs, callback_on_step_end)


def batcher_of(samples_per_pass: int, tiny: Path) -> Iterator[StaticBatcher]:
    batcher = StaticBatcher(
        Watched(load_checkpoint(tiny), samples_per_pass=samples_per_pass), max_batch=4
    )
    yield batcher
    batcher.close()


@pytest.fixture
def exact(tiny_checkpoint: Path) -> Iterator[StaticBatcher]:
    """One sample a pass: no float of a picture depends on its batch."""
    yield from batcher_of(1, tiny_checkpoint)


@pytest.fixture
def batched(tiny_checkpoint: Path) -> Iterator[StaticBatcher]:
    """As it is measured: one pass a step."""
    yield from batcher_of(4, tiny_checkpoint)


def submit(batcher: StaticBatcher, steps: list[int]) -> "list[Future[Made]]":
    """Jobs of these step counts, behind a first one that holds the batcher until all wait."""
    pipeline = batcher.pipeline
    assert isinstance(pipeline, Watched)
    (first,) = pipeline.plan("x", seed=0, num_inference_steps=1)
    held = batcher.submit(first)
    assert pipeline.reached.wait(SECONDS)
    futures = []
    for seed, count in enumerate(steps):
        (job,) = pipeline.plan("a red circle", seed=seed, num_inference_steps=count)
        futures.append(batcher.submit(job))
    pipeline.opened.set()
    held.result(SECONDS)
    return futures


def test_it_gives_the_tokens_of_the_pipeline(exact: StaticBatcher, pipe: CoGRPOPipeline) -> None:
    futures = submit(exact, STEPS)
    for seed, (future, count) in enumerate(zip(futures, STEPS, strict=True)):
        made = future.result(SECONDS)
        alone = pipe("a red circle", seed=seed, num_inference_steps=count, output_type="tokens")
        assert np.array_equal(made.trajectory.tokens, alone.trajectories[0].tokens)
        assert made.trajectory.num_steps == count
        assert made.queue_seconds >= 0


def test_batches_are_full_while_enough_wait(batched: StaticBatcher) -> None:
    for future in submit(batched, STEPS):
        future.result(SECONDS)
    assert isinstance(batched.pipeline, Watched)
    assert batched.pipeline.batches == [1, 4, 2]


def test_a_step_is_one_pass_over_the_samples_that_have_steps_left(
    batched: StaticBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = batched.pipeline.checkpoint.transformer
    rows: list[int] = []
    hidden_at = transformer.hidden_at

    def count(tokens: Any, remaining: Any, *rest: Any, **options: Any) -> Any:
        rows.append(len(remaining))
        return hidden_at(tokens, remaining, *rest, **options)

    monkeypatch.setattr(transformer, "hidden_at", count)
    for future in submit(batched, [2, 5, 3, 5]):
        future.result(SECONDS)
    # Behind the first job's single pass; both passes of guidance are rows of one pass. The two of
    # five steps have the same first pass.
    assert rows[1:] == [2 * active for active in (3, 4, 3, 2, 2)]


def test_the_static_kind_keeps_its_shape_and_gives_the_same_tokens(
    tiny_checkpoint: Path, pipe: CoGRPOPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = StaticPipeline(load_checkpoint(tiny_checkpoint), samples_per_pass=4)
    jobs = [
        job
        for seed, count in enumerate([2, 5, 3, 5])
        for job in static.plan("a red circle", seed=seed, num_inference_steps=count)
    ]
    rows: list[int] = []
    hidden_at = static.checkpoint.transformer.hidden_at

    def count(tokens: Any, remaining: Any, *rest: Any, **options: Any) -> Any:
        rows.append(len(remaining))
        return hidden_at(tokens, remaining, *rest, **options)

    monkeypatch.setattr(static.checkpoint.transformer, "hidden_at", count)
    made = static.generate(jobs)
    assert rows == [2 * 4] * 5
    for job, trajectory in zip(jobs, made, strict=True):
        alone = pipe.generate([job])[0]
        assert np.mean(trajectory.tokens == alone.tokens) > 0.95  # float ties may differ
        assert trajectory.num_steps == job.schedule.num_steps


def test_a_lone_job_starts_after_the_forming_time(batched: StaticBatcher) -> None:
    assert isinstance(batched.pipeline, Watched)
    batched.pipeline.opened.set()
    (job,) = batched.pipeline.plan("x", seed=0, num_inference_steps=1)
    made = batched.submit(job).result(SECONDS)
    assert made.queue_seconds >= 0.05


def test_texts_are_encoded_once(batched: StaticBatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = CoGRPOPipeline.encode

    def count(self: Any, text: str, height: int, width: int) -> Any:
        encoded.append(text)
        return encode(self, text, height, width)

    monkeypatch.setattr(CoGRPOPipeline, "encode", count)
    for future in submit(batched, STEPS):
        future.result(SECONDS)
    assert sorted(encoded) == ["", "a red circle", "x"]


def test_a_failing_batch_fails_alone(
    batched: StaticBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(batched.pipeline, Watched)
    batched.pipeline.opened.set()
    (job,) = batched.pipeline.plan("x", seed=0, num_inference_steps=1)
    with monkeypatch.context() as broken:
        broken.setattr(CoGRPOPipeline, "generate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batched.submit(job).result(SECONDS)
    assert batched.submit(job).result(SECONDS).trajectory.num_steps == 1


def test_closing_ends_the_thread(tiny_checkpoint: Path) -> None:
    batcher = StaticBatcher(
        ShrinkingPipeline(load_checkpoint(tiny_checkpoint), samples_per_pass=4), max_batch=4
    )
    batcher.close()
    assert not any(thread.name == "static-steps" for thread in threading.enumerate())
