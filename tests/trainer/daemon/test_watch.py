"""A new champion and the log: what serves worse is taken back, and nothing else is."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from cogrpo_core.exchange.policy_announce import CHANNEL
from cogrpo_core.exchange.policy_journal import Judgement, Move
from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_core.exchange.trajectory_log import STREAM, read_last
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_trainer.daemon import watch
from cogrpo_trainer.daemon.config import DaemonConfig
from cogrpo_trainer.daemon.live_reward import LiveReward
from cogrpo_trainer.daemon.watch import Watch
from tests.conftest import RedisServer
from tests.policies import promote
from tests.trainer.daemon.online import daemon_config, log, served, serving, two_versions
from tests.trainer.daemon.test_cycle import running
from tests.trainer.train.conftest import WEIGHTS

PICTURES = 20


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> DaemonConfig:
    return daemon_config(tiny_checkpoint, tmp_path, watch={"pictures": PICTURES})


def serve(
    connection: redis.Redis, pipe: CoGRPOPipeline, prompts: Sequence[str], **options: Any
) -> None:
    for seed, prompt in enumerate(prompts):
        log(connection, served(pipe, prompt, [seed], **options))


def prompts(count: int) -> list[str]:
    return [f"picture {i}" for i in range(count)]


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def record_of(data: Path, version: str) -> Path:
    return data / "training" / "watches" / f"{version}.json"


def test_what_serves_worse_is_taken_back_once(
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    connection: redis.Redis,
    registry: PolicyRegistry,
    model: Checkpoint,
) -> None:
    good, bad = two_versions(registry, model, better_last=False)
    promote(registry, good)
    promote(registry, bad)
    serve(connection, serving(registry, model, bad), prompts(PICTURES + 4))
    heard = connection.pubsub(ignore_subscribe_messages=True)
    heard.subscribe(CHANNEL)
    heard.get_message(timeout=5)  # that it listens
    with running(config, tmp_path, redis_server.url):
        until(record_of(tmp_path, bad).exists, "the champion is not judged")
    assert registry.aliases().champion == good
    judgement, move, *_ = registry.history()
    assert isinstance(judgement, Judgement) and isinstance(move, Move)
    assert (judgement.version, judgement.status, judgement.who) == (bad, "rejected", "trainer")
    assert (move.to, move.was, move.who, move.forced) == (good, bad, "trainer", True)
    assert f"the reward of {PICTURES} live pictures" in move.why and good in move.why
    evidence: Any = move.evidence
    assert evidence["fall_bound"] > evidence["margin"] == config.watch.margin
    assert set(evidence["rewards"]) == set(WEIGHTS)
    message: Any = heard.get_message(timeout=5)
    assert f'"n": {move.n}'.encode() in message["data"]
    heard.close()
    # Nothing was taken from the log's consumers.
    assert connection.xlen(STREAM) == PICTURES + 4
    assert connection.xinfo_groups(STREAM) == []


def test_what_serves_better_stays_and_is_judged_once(
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    connection: redis.Redis,
    registry: PolicyRegistry,
    model: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, good = two_versions(registry, model, better_last=True)
    promote(registry, bad)
    promote(registry, good)
    serve(connection, serving(registry, model, good), prompts(PICTURES))
    compared = []
    compare = LiveReward.compare

    def counted(*arguments: Any) -> Any:
        compared.append(1)
        return compare(*arguments)

    monkeypatch.setattr(LiveReward, "compare", counted)
    for _ in range(2):  # also after a restart
        with running(config, tmp_path, redis_server.url):
            until(record_of(tmp_path, good).exists, "the champion is not judged")
            time.sleep(0.3)
    assert len(compared) == 1
    assert registry.aliases().champion == good
    assert registry.get(good).status == "candidate"
    assert connection.xlen(STREAM) == PICTURES


@pytest.mark.parametrize("why", ["few", "one prompt", "the caller's", "another's", "old", "off"])
def test_what_says_too_little_decides_nothing(
    why: str,
    config: DaemonConfig,
    tmp_path: Path,
    redis_server: RedisServer,
    connection: redis.Redis,
    registry: PolicyRegistry,
    model: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, bad = two_versions(registry, model, better_last=False)
    promote(registry, good)
    promote(registry, bad)
    worse = serving(registry, model, bad)
    if why == "few":
        serve(connection, worse, prompts(PICTURES - 1))
    elif why == "one prompt":
        serve(connection, worse, [" A  lamp" if i % 2 else "a Lamp" for i in range(PICTURES)])
    elif why == "the caller's":
        serve(connection, worse, prompts(PICTURES // 2), guidance_scale=1.0)
        serve(connection, worse, prompts(PICTURES)[PICTURES // 2 :], schedule="paper-table-1")
    elif why == "another's":
        serve(connection, serving(registry, model, good), prompts(PICTURES))
    else:
        serve(connection, worse, prompts(PICTURES))
        changes: dict[str, Any] = {"seconds": 0.001} if why == "old" else {"pictures": 0}
        config = config.model_copy(update={"watch": config.watch.model_copy(update=changes)})
    looks = []
    due = Watch.due

    def counted(self: Watch) -> Any:
        found = due(self)
        looks.append(found)
        return found

    monkeypatch.setattr(Watch, "due", counted)
    with running(config, tmp_path, redis_server.url):
        until(lambda: len(looks) >= 8, "the trainer does not look")
    assert registry.aliases().champion == bad
    assert not record_of(tmp_path, bad).exists()


def test_a_return_to_an_older_version_is_not_watched(
    config: DaemonConfig,
    tmp_path: Path,
    connection: redis.Redis,
    registry: PolicyRegistry,
    model: Checkpoint,
) -> None:
    bad, good = two_versions(registry, model, better_last=True)
    promote(registry, bad)
    promote(registry, good)
    serve(connection, serving(registry, model, bad), prompts(PICTURES))
    watched = Watch(config, registry, connection, tmp_path / "training")
    assert watched.due() is None  # of the champion the log has nothing
    registry.roll_back(expected=good, who="me", why="I know better")
    time.sleep(watch.LOOK_SECONDS)
    assert len(read_last(connection, 100)) == PICTURES
    assert watched.due() is None
