"""Evaluations that were asked for: done between cycles, written down, again after a crash."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogrpo_client.types import Evaluation
from cogrpo_core.exchange.policy_evaluations import EvaluationRecord, Evaluations
from cogrpo_core.exchange.policy_journal import Judgement
from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_core.exchange.training_cycles import BASE, CycleRecord, Cycles
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_trainer.daemon import evaluator
from cogrpo_trainer.daemon.config import DaemonConfig
from cogrpo_trainer.daemon.cycle import CycleRunner
from cogrpo_trainer.daemon.verdict import judge_challenger
from tests.conftest import RedisServer
from tests.policies import full, not_finite, promote
from tests.trainer.daemon.online import daemon_config, make_daemon, two_versions
from tests.trainer.daemon.test_cycle import running

LENIENT = {"margin": 1000.0, "max_slowdown": 1000.0}  # the effect alone decides


@pytest.fixture
def evaluations(tmp_path: Path) -> Evaluations:
    return Evaluations(tmp_path / "training")


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> DaemonConfig:
    return daemon_config(tiny_checkpoint, tmp_path, gate=LENIENT)


def ended(evaluations: Evaluations, version: str, seconds: float = 120) -> EvaluationRecord:
    deadline = time.monotonic() + seconds
    while True:
        record = evaluations.get(version)
        assert record is not None
        if record.ended:
            return record
        assert time.monotonic() < deadline, f"the evaluation does not end: {record}"
        time.sleep(0.02)


@pytest.mark.slow
def test_of_two_versions_one_passes_against_the_other_and_only_the_champion_counts(
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    registry: PolicyRegistry,
    evaluations: Evaluations,
    model: Checkpoint,
) -> None:
    worse, better = two_versions(registry, model, better_last=True)
    with running(config, tmp_path, redis_server.url):
        evaluations.request(better, against=worse)
        evaluations.request(worse, against=better)
        one, other = ended(evaluations, better), ended(evaluations, worse)
        assert (one.status, other.status) == ("completed", "completed"), (one, other)
        found, counter = (Evaluation.model_validate(done.facts) for done in (one, other))
        assert found.effect is not None and counter.effect is not None
        assert found.effect > 0 > counter.effect
        assert (found.passed, counter.passed) == (True, False)
        assert (found.against, found.prompts, counter.against) == (worse, 20, better)
        assert {"brightness", "redness", "blueness"} <= found.rewards.keys()
        # Neither was against the champion, so neither is a judgement.
        assert [registry.get(one).status for one in (better, worse)] == ["candidate"] * 2
        promote(registry, worse)
        evaluations.request(better, against=worse)
        assert ended(evaluations, better).status == "completed"
        promote(registry, better)
        evaluations.request(worse, against=better)
        assert ended(evaluations, worse).status == "completed"
    assert registry.get(better).status == "passed"
    assert registry.get(worse).status == "rejected"
    judgements = [entry for entry in registry.history() if isinstance(entry, Judgement)]
    assert [entry.version for entry in judgements] == [worse, better]
    assert judgements[1].evidence["evaluation"] == ended(evaluations, better).facts
    assert len(registry.versions()) == 2, "nothing is published"


def test_what_cannot_be_loaded_or_asked_for_fails_with_a_reason(
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    registry: PolicyRegistry,
    evaluations: Evaluations,
    model: Checkpoint,
) -> None:
    good, broken = full(registry, model, 1), not_finite(registry, model)
    cut = full(registry, model, 2)
    file = tmp_path / "policies" / "versions" / cut / "transformer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    gone = "20260101T000000000Z-0123456789abcdef"
    asked: list[tuple[str, dict[str, Any], str, str]] = [
        (broken, {"against": BASE}, "damaged", f"version {broken} is damaged"),
        (cut, {"against": BASE}, "damaged", f"version {cut} is damaged"),
        (gone, {"against": BASE}, "unknown", f"version {gone} is not in the registry"),
        (good, {"against": broken}, "damaged", f"version {broken} is damaged"),
        (good, {"against": BASE, "suite": "no"}, "invalid", "no such suite; it has few"),
        (good, {"against": BASE, "suite": "few"}, "invalid", "5 prompts have both scores"),
    ]
    few = tmp_path / "few.txt"
    few.write_text("".join(f"one of few {i}\n" for i in range(5)))
    config = config.model_copy(update={"suites": {"few": str(few)}})
    with running(config, tmp_path, redis_server.url):
        for version, wanted, code, words in asked:
            evaluations.request(version, **wanted)
            record = ended(evaluations, version)
            assert (record.status, record.code) == ("failed", code), record
            assert words in record.detail and str(tmp_path) not in record.detail
    assert registry.get(good).status == "candidate"


def test_the_suite_that_was_asked_for_is_used(
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    registry: PolicyRegistry,
    evaluations: Evaluations,
    model: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(f"another {i}\n" for i in range(40)))
    config = config.model_copy(update={"suites": {"other": str(other)}})
    version = full(registry, model, 1)
    prompts: list[str] = []
    call = CoGRPOPipeline.__call__

    def noted(self: CoGRPOPipeline, prompt: Any, *arguments: Any, **options: Any) -> Any:
        prompts.extend([prompt] if isinstance(prompt, str) else prompt)
        return call(self, prompt, *arguments, **options)

    monkeypatch.setattr(CoGRPOPipeline, "__call__", noted)
    with running(config, tmp_path, redis_server.url):
        evaluations.request(version, against=BASE, suite="other", prompts=30)
        facts: Any = ended(evaluations, version).facts
    assert (facts["suite"], facts["prompts"]) == ("other", 30)
    assert set(prompts) == {"a trial", *(f"another {i}" for i in range(30))}


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
def test_it_ends_at_the_next_batch(
    how: str,
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    registry: PolicyRegistry,
    evaluations: Evaluations,
    model: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = full(registry, model, 1)
    evaluations.request(version, against=BASE)
    daemon = make_daemon(config, tmp_path, redis_server.url)
    judge = judge_challenger

    def interrupted(*arguments: Any, look: Callable[[], None], **options: Any) -> Any:
        begun.set()
        evaluations.cancel(version) if how == "cancelled" else daemon.stop()
        return judge(*arguments, look=look, **options)

    begun = threading.Event()
    monkeypatch.setattr(evaluator, "judge_challenger", interrupted)
    thread = threading.Thread(target=daemon.run)
    thread.start()
    try:
        assert begun.wait(60)
        if how == "cancelled":
            record = ended(evaluations, version)
            assert (record.status, record.code) == ("cancelled", "cancelled")
            assert record.facts is None
    finally:
        daemon.stop()
        thread.join(60)
    assert not thread.is_alive()
    if how == "stopped":
        record_then = evaluations.get(version)
        assert record_then is not None
        assert (record_then.status, record_then.attempts) == ("queued", 0)
    monkeypatch.setattr(evaluator, "judge_challenger", judge)
    if how == "cancelled":
        evaluations.request(version, against=BASE)
    with running(config, tmp_path, redis_server.url):
        assert ended(evaluations, version).status == "completed"


@pytest.mark.parametrize(("attempts", "status"), [(1, "completed"), (3, "failed")])
def test_what_a_dead_trainer_began_is_done_again_but_not_for_ever(
    attempts: int,
    status: str,
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    registry: PolicyRegistry,
    evaluations: Evaluations,
    model: Checkpoint,
) -> None:
    version = full(registry, model, 1)
    record = evaluations.request(version, against=BASE)
    left = {"status": "running", "started": 1, "attempts": attempts}
    evaluations.write(record.model_copy(update=left))
    with running(config, tmp_path, redis_server.url):
        assert ended(evaluations, version).status == status


def test_an_error_ends_it_and_the_trainer_goes_on(
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    registry: PolicyRegistry,
    evaluations: Evaluations,
    model: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = full(registry, model, 1), full(registry, model, 2)

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no luck")

    with running(config, tmp_path, redis_server.url):
        with monkeypatch.context() as patched:
            patched.setattr(evaluator, "judge_challenger", fails)
            evaluations.request(first, against=BASE)
            record = ended(evaluations, first)
        assert (record.status, record.code) == ("failed", "failed")
        assert record.detail == "RuntimeError: no luck"
        evaluations.request(second, against=BASE)
        assert ended(evaluations, second).status == "completed"


@pytest.mark.parametrize("status", ["queued", "running"])
def test_it_comes_before_a_cycle_that_waits_and_after_one_under_way(
    status: Any,
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    registry: PolicyRegistry,
    evaluations: Evaluations,
    model: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    cycles = Cycles(tmp_path / "training")

    def run(self: CycleRunner, record: CycleRecord) -> CycleRecord:
        order.append("cycle")
        done = record.model_copy(update={"status": "completed"})
        cycles.write(done)
        return done

    def evaluate(*_: Any) -> Any:
        order.append("evaluation")
        return {"status": "completed"}

    monkeypatch.setattr(CycleRunner, "run", run)
    monkeypatch.setattr(evaluator.Evaluator, "evaluate", evaluate)
    cycle = cycles.request("request")
    cycles.write(cycle.model_copy(update={"status": status}))
    version = full(registry, model, 1)
    evaluations.request(version, against=BASE)
    with running(config, tmp_path, redis_server.url):
        ended(evaluations, version)
        deadline = time.monotonic() + 60
        while len(order) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert order == (["evaluation", "cycle"] if status == "queued" else ["cycle", "evaluation"])


@pytest.mark.slow  # it starts two processes
def test_a_trainer_that_is_killed_in_the_middle_does_it_again(
    tiny_checkpoint: Path,
    tmp_path: Path,
    redis_server: RedisServer,
    registry: PolicyRegistry,
    evaluations: Evaluations,
    model: Checkpoint,
) -> None:
    version = full(registry, model, 1)
    evaluations.request(version, against=BASE)
    command = [sys.executable, "-m", "tests.trainer.daemon.online"]
    command += [str(tiny_checkpoint), str(tmp_path), str(tmp_path), redis_server.url]
    for life in range(2):
        with open(tmp_path / "output", "ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            if life == 1:
                record = ended(evaluations, version, seconds=200)
                break
            deadline = time.monotonic() + 200
            while (found := evaluations.get(version)) is None or found.status == "queued":
                assert process.poll() is None, (tmp_path / "output").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            assert found.status == "running"
        finally:
            process.kill()
            process.wait(10)
    assert (record.status, record.attempts) == ("completed", 2), record
