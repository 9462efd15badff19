"""The engine: its queue, its clock, and how it stops."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogrpo_core.exchange.trajectory_log import TrajectoryWriter, connect, read_last
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_server import engine as engine_module
from cogrpo_server.engine import Engine
from cogrpo_server.jobs import Job, Made, Refused
from cogrpo_server.settings import Settings
from tests.conftest import RedisServer
from tests.server.conftest import settled

JOB = Job("gen_1", "req_1", "a red circle", "", n=1, seed=1, store=True)
LONG = replace(JOB, id="gen_2", num_inference_steps=256)


@contextmanager
def counted_steps(engine: Engine) -> Iterator[list[int]]:
    """The steps that the engine's model finishes meanwhile."""
    pipeline: Any = engine._pipeline
    steps: list[int] = []

    def counting(*args: Any, callback_on_step_end: Any, **options: Any) -> Any:
        def count(pipe: Any, step: int, *rest: Any) -> None:
            steps.append(step)
            callback_on_step_end(pipe, step, *rest)

        return pipeline(*args, callback_on_step_end=count, **options)

    engine._pipeline = counting  # type: ignore[assignment]
    try:
        yield steps
    finally:
        engine._pipeline = pipeline


async def first_step(steps: list[int]) -> None:
    async with asyncio.timeout(30):
        while not steps:
            await asyncio.sleep(0.005)


async def test_a_cancelled_job_stops_and_harms_no_other(engine: Engine) -> None:
    with counted_steps(engine) as steps:
        dropped = asyncio.ensure_future(engine.generate(LONG))
        await first_step(steps)
        neighbour = asyncio.ensure_future(engine.generate(JOB))
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        assert isinstance(await neighbour, Made)
        assert len(steps) < 256


async def test_a_job_cancelled_in_the_queue_never_runs(engine: Engine) -> None:
    with counted_steps(engine) as steps:
        running = asyncio.ensure_future(engine.generate(replace(LONG, num_inference_steps=20)))
        await first_step(steps)
        waiting = asyncio.ensure_future(engine.generate(JOB))
        await asyncio.sleep(0)
        waiting.cancel()
        assert isinstance(await running, Made)
        assert isinstance(await engine.generate(JOB), Made)
        assert len(steps) == 20 + 4


async def test_beyond_the_queue_jobs_are_refused_at_once(engine: Engine) -> None:
    jobs = [asyncio.ensure_future(engine.generate(replace(JOB, id=f"g{i}"))) for i in range(6)]
    outcomes = await asyncio.gather(*jobs)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert len(refused) == 3  # the queue of these tests holds 3
    assert {outcome.code for outcome in refused} == {"overloaded"}
    assert all(1 <= (outcome.retry_after or 0) <= 120 for outcome in refused)


async def test_the_event_loop_runs_while_the_model_does(engine: Engine) -> None:
    with counted_steps(engine) as steps:
        work = asyncio.ensure_future(engine.generate(replace(LONG, num_inference_steps=40)))
        seen = set()
        while not work.done():
            assert (await engine.status()).state == "ready"
            seen.add(len(steps))
            await asyncio.sleep(0.001)
    assert len(seen) > 10


def test_time_runs_out_at_a_step_boundary(settings: Settings) -> None:
    engine = Engine(settings.model_copy(update={"request_seconds": 0.2}), None)
    assert settled(engine).state == "ready"
    with counted_steps(engine) as steps:
        outcome = asyncio.run(engine.generate(LONG))
        assert isinstance(outcome, Refused)
        assert outcome.code == "timeout"
        assert 0 < len(steps) < 256
        assert isinstance(asyncio.run(engine.generate(JOB)), Made | Refused)  # it goes on
    engine.close()


def test_close_stops_what_runs(settings: Settings) -> None:
    engine = Engine(settings, None)
    assert settled(engine).state == "ready"

    async def close_in_the_middle() -> list[Made | Refused]:
        with counted_steps(engine) as steps:
            jobs = [asyncio.ensure_future(engine.generate(LONG)) for _ in range(2)]
            await first_step(steps)
            engine.close()
            outcomes = await asyncio.gather(*jobs)
            assert len(steps) < 256
            return [*outcomes, await engine.generate(JOB)]

    outcomes = asyncio.run(close_in_the_middle())
    assert [outcome.code for outcome in outcomes if isinstance(outcome, Refused)] == [
        "stopping"
    ] * 3


def test_a_checkpoint_that_cannot_be_loaded_says_why(settings: Settings, tmp_path: Path) -> None:
    engine = Engine(settings.model_copy(update={"model": str(tmp_path)}), None)
    status = settled(engine)
    assert status.state == "failed"
    assert "model_index.json" in status.reason
    outcome = asyncio.run(engine.generate(JOB))
    assert isinstance(outcome, Refused)
    assert str(tmp_path) not in outcome.message
    engine.close()


async def test_a_model_that_fails_is_a_refusal_and_not_the_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    pipeline = engine._pipeline
    monkeypatch.setattr(engine, "_pipeline", broken)
    outcome = await engine.generate(JOB)
    assert isinstance(outcome, Refused)
    assert (outcome.code, "secret" in outcome.message) == ("failed", False)
    monkeypatch.setattr(engine, "_pipeline", pipeline)
    assert isinstance(await engine.generate(JOB), Made)


async def test_health_sees_a_stuck_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not engine.is_wedged()
    with counted_steps(engine) as steps:
        work = asyncio.ensure_future(engine.generate(replace(LONG, num_inference_steps=20)))
        await first_step(steps)
        assert not engine.is_wedged()
        monkeypatch.setattr(engine_module, "WEDGED_SECONDS", -1.0)
        assert engine.is_wedged()
        await work
    assert not engine.is_wedged()  # nothing runs


def test_every_stored_picture_is_in_the_log_and_replays(
    settings: Settings, redis_server: RedisServer, tiny_checkpoint: Path
) -> None:
    writer = TrajectoryWriter(connect(redis_server.url))
    engine = Engine(settings, writer)
    assert settled(engine).state == "ready"

    async def make() -> None:
        schedule = {"remask_ratio": 0.4, "guidance_scale": [4.0, 3.0, 2.0]}
        job = replace(JOB, n=2, num_inference_steps=3, schedule=schedule)
        made = await engine.generate(job)
        assert isinstance(made, Made)
        assert made.stored
        unstored = await engine.generate(replace(JOB, id="gen_9", store=False))
        assert isinstance(unstored, Made)
        assert not unstored.stored
        assert (await engine.status()).degraded == []

    asyncio.run(make())
    engine.close()  # it writes what waits
    entries = read_last(connect(redis_server.url), 10)
    assert [entry.event_id for entry in entries] == ["gen_1-1", "gen_1-0"]
    assert {entry.request_id for entry in entries} == {"req_1"}
    pipeline = CoGRPOPipeline.from_pretrained(tiny_checkpoint)
    for entry, seed in zip(entries, (2, 1), strict=True):
        trajectory = entry.trajectory()
        assert trajectory.seed == seed
        assert trajectory.model == "tiny"  # the name, not the path
        assert entry.policy_version == trajectory.policy_version
        assert trajectory.actions[:, 3].tolist() == [4.0, 3.0, 2.0]
        assert pipeline.verify(trajectory).identical


def test_without_redis_pictures_are_made_and_wait(
    settings: Settings, redis_server: RedisServer
) -> None:
    redis_server.stop()
    writer = TrajectoryWriter(connect(redis_server.url))
    engine = Engine(settings, writer)
    assert settled(engine).state == "ready"

    async def make() -> None:
        assert isinstance(await engine.generate(JOB), Made)
        async with asyncio.timeout(20):
            while not (status := await engine.status()).degraded:
                await asyncio.sleep(0.02)
        assert status.state == "ready"
        assert "1 trajectories wait" in status.degraded[0]
        redis_server.start()
        async with asyncio.timeout(20):
            while (await engine.status()).degraded or writer.status().waiting:
                await asyncio.sleep(0.02)

    asyncio.run(make())
    engine.close()
    assert [entry.event_id for entry in read_last(connect(redis_server.url), 10)] == ["gen_1-0"]
