"""From the registry to the engine: loading, trying, changing over, refusing, taking back."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cogrpo_core.denoise import denoise_turn
from cogrpo_core.engine import Engine
from cogrpo_core.exchange import policy_follower
from cogrpo_core.exchange.policy_announce import Announcements, announce
from cogrpo_core.exchange.policy_follower import PolicyFollower, Refusal
from cogrpo_core.exchange.policy_guard import Limits, fault
from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_core.exchange.policy_weights import FullModel, ScheduleOnly, publish
from cogrpo_core.exchange.trajectory_log import connect
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.versions import Health
from cogrpo_core.work import Request
from tests.conftest import RedisServer
from tests.core.exchange.conftest import wait_until
from tests.policies import full, not_finite, promote

SECONDS = 30.0
LIMITS = Limits(requests=4, turns=4)


@pytest.fixture
def registry(tmp_path: Path) -> PolicyRegistry:
    return PolicyRegistry(tmp_path / "policies")


@pytest.fixture
def engine(model: Checkpoint) -> Iterator[Engine]:
    engine = Engine(CoGRPOPipeline(model, decode_tile=12), slots=2)
    yield engine
    engine.close()


@pytest.fixture
def follower(engine: Engine, registry: PolicyRegistry) -> PolicyFollower:
    return PolicyFollower(engine, registry, limits=LIMITS)


def serves(engine: Engine) -> str:
    """What makes the next picture."""
    request = Request({"prompt": "a star", "seed": 1}, images=1, num_steps=2)
    return engine.submit(request).result(SECONDS).trajectories[0].policy_version


def test_it_converges_to_the_champion_and_back_to_the_base(registry, engine, follower, model):
    follower.catch_up()
    assert serves(engine) == "base" and follower.converged
    first, second = (full(registry, model, i) for i in range(2))
    for version in (first, second, first, None, second):
        promote(registry, version)
        follower.catch_up()
        assert serves(engine) == (version or "base")
        assert follower.converged and not follower.refused
    assert follower.swaps["installed"] == 5
    assert follower.load_seconds is not None


def test_a_late_engine_begins_with_the_champion(registry, engine, follower, model):
    version = full(registry, model, 1)
    promote(registry, version)
    assert not follower.converged or follower.wanted.champion is None
    follower.catch_up()
    assert engine.serving.champion.policy_version == version
    assert engine.serving.champion.checkpoint.vqvae is model.vqvae
    assert engine.serving.champion.decode_tile == 12


def test_a_schedule_version_shares_the_transformer_in_memory(
    registry, engine, follower, model, model_with_policy
):
    version = full(registry, model, 1)
    promote(registry, version)
    follower.catch_up()
    champion = engine.serving.champion
    schedule = ScheduleOnly(model_with_policy.schedule_policy)
    challenger = publish(registry, model, schedule, on=version)
    registry.move("challenger", challenger, expected=None, who="test")
    registry.set_share(0.5, who="test")
    follower.catch_up()
    serving = engine.serving
    assert serving.challenger is not None and serving.share == 0.5
    assert serving.challenger.policy_version == challenger
    assert serving.challenger.checkpoint.transformer is champion.checkpoint.transformer
    assert follower.converged
    registry.set_share(0.0, who="test")
    follower.catch_up()
    assert engine.serving.challenger is None and follower.converged
    promote(registry, challenger)
    follower.catch_up()
    assert serves(engine) == challenger


def test_a_third_version_waits_until_the_oldest_has_no_pictures(registry, engine, follower, model):
    versions = [full(registry, model, i) for i in range(3)]
    promote(registry, versions[0])
    follower.catch_up()
    reached, opened = threading.Event(), threading.Event()

    def hold(image, facts):
        reached.set()
        assert opened.wait(SECONDS)

    old = engine.submit(Request({"prompt": "x", "seed": 1}, 1, 3, on_step=hold))
    try:
        assert reached.wait(SECONDS)
        promote(registry, versions[1])
        follower.catch_up()
        promote(registry, versions[2])
        follower.catch_up()
        assert engine.serving.champion.policy_version == versions[1]
        assert not follower.converged and not follower.refused
        names = {one.policy_version for one in engine.resident()}
        assert names == {versions[0], versions[1]}
        promote(registry, versions[0])  # it is in memory still
        follower.catch_up()
        assert engine.serving.champion.policy_version == versions[0]
        promote(registry, versions[2])
    finally:
        opened.set()
    assert old.result(SECONDS).trajectories[0].policy_version == versions[0]
    follower.catch_up()
    assert serves(engine) == versions[2] and follower.converged


def test_the_challenger_gives_its_place_to_a_new_champion(registry, engine, follower, model):
    first, canary, second = (full(registry, model, i) for i in range(3))
    promote(registry, first)
    registry.move("challenger", canary, expected=None, who="test")
    registry.set_share(0.5, who="test")
    follower.catch_up()
    assert len(engine.serving.pipelines) == 2
    promote(registry, second)
    follower.catch_up()
    assert [one.policy_version for one in engine.serving.pipelines] == [second, canary]


@pytest.mark.parametrize("how", ["nan", "cut", "gone", "other base"])
def test_what_cannot_be_used_is_refused_once_and_serving_goes_on(
    registry, engine, follower, model, model_with_policy, tmp_path, how
):
    good = full(registry, model, 1)
    promote(registry, good)
    follower.catch_up()
    folder = tmp_path / "policies" / "versions"
    if how == "nan":
        bad = not_finite(registry, model)
    elif how == "other base":
        bad = full(registry, replace(model, fingerprint="0" * 64), 2)
    else:
        bad = full(registry, model, 2)
    promote(registry, bad, forced=True)
    if how == "cut":
        file = folder / bad / "transformer.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
    elif how == "gone":
        (folder / bad / "transformer.safetensors").unlink()
    for _ in range(3):
        follower.catch_up()
    assert serves(engine) == good
    refusal = follower.refused[bad]
    assert (refusal.code, refusal.tries) == ("damaged", 1)
    assert bad in refusal.message
    assert not follower.converged and follower.swaps["refused"] == 1
    promote(registry, good)
    follower.catch_up()
    assert follower.converged and serves(engine) == good


def test_what_makes_no_picture_is_refused_too(registry, engine, follower, model):
    weights = {name: value * 1e30 for name, value in model.transformer.state_dict().items()}
    bad = publish(registry, model, FullModel(weights))
    promote(registry, bad)
    follower.catch_up()
    assert follower.refused[bad].code == "unusable"
    assert serves(engine) == "base"


def test_a_refused_version_is_tried_again_after_waits_that_double():
    refusal = Refusal("v", "unavailable", "", at=1000.0)
    assert not refusal.is_due(1004) and refusal.is_due(1006)
    assert not replace(refusal, tries=3).is_due(1019) and replace(refusal, tries=3).is_due(1021)
    assert not replace(refusal, tries=99).is_due(1299) and replace(refusal, tries=99).is_due(1301)
    assert refusal.is_due(5.0)  # the clock was set back


def test_a_repaired_version_is_taken(registry, engine, follower, model, tmp_path, monkeypatch):
    version = full(registry, model, 1)
    promote(registry, version)
    file = tmp_path / "policies" / "versions" / version / "transformer.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    follower.catch_up()
    assert version in follower.refused
    file.write_bytes(whole)
    follower.catch_up()
    assert serves(engine) == "base"  # not yet
    monkeypatch.setattr(policy_follower, "_FIRST_RETRY", 0.0)
    follower.catch_up()
    assert serves(engine) == version and not follower.refused


def test_a_registry_that_cannot_be_read_changes_nothing(
    registry, engine, follower, model, tmp_path
):
    version = full(registry, model, 1)
    promote(registry, version)
    follower.catch_up()
    journal = tmp_path / "policies" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b"{}\n")
    follower.catch_up()
    assert serves(engine) == version
    assert follower.unreadable == "damaged" and not follower.converged
    journal.write_bytes(whole)
    follower.catch_up()
    assert follower.unreadable is None and follower.converged


def test_it_follows_by_itself_and_at_once_when_told(
    registry, engine, model, redis_server: RedisServer, monkeypatch
):
    monkeypatch.setattr(policy_follower, "POLL_SECONDS", 3.5)
    connection = connect(redis_server.url)
    follower = PolicyFollower(engine, registry, announcements=Announcements(connection))
    version = full(registry, model, 1)
    follower.start()
    try:
        wait_until(lambda: connection.pubsub_numsub("cogrpo:policies")[0][1] == 1)
        move = registry.move("champion", version, expected=None, who="test")
        began = time.monotonic()
        announce(connection, move)
        wait_until(lambda: follower.converged and follower.wanted.champion == version)
        told = time.monotonic() - began
        redis_server.stop()
        registry.roll_back(expected=version, who="test", why="by polling alone")
        began = time.monotonic()
        wait_until(lambda: follower.converged and follower.wanted.champion is None)
        assert told < 3.5  # less than a poll; most of it is the loading
    finally:
        follower.close()


def noted(engine: Engine, version: str, requests: int, failed: int, seconds: float = 0.1) -> None:
    """What the engine would have noted of a version."""
    for i in range(requests):
        engine._records.note_outcome(version, "failed" if i < failed else "done")
        engine._records.note_turn(version, 1, seconds)


@pytest.mark.parametrize(("failed", "seconds"), [(4, 0.1), (0, 0.5)])
def test_a_canary_that_does_worse_is_withdrawn(registry, engine, follower, model, failed, seconds):
    version = full(registry, model, 1)
    registry.move("challenger", version, expected=None, who="test")
    registry.set_share(0.5, who="test")
    follower.catch_up()
    noted(engine, "base", 5, 0)
    noted(engine, version, 3, min(3, failed), seconds)
    follower.catch_up()
    assert registry.aliases().challenger == version  # too few to say
    noted(engine, version, 2, min(2, failed), seconds)
    follower.catch_up()
    follower.catch_up()
    assert registry.aliases().challenger is None
    assert engine.serving.challenger is None and serves(engine) == "base"
    assert registry.get(version).status == "rejected"
    judgement, move = registry.history(2)
    assert move.who == "engine" and ("failed" in move.why or "times as long" in move.why)
    assert move.evidence[version] and judgement.why == move.why
    assert follower.swaps["withdrawn"] == 1


def test_a_canary_whose_requests_fail_harms_no_other_and_is_withdrawn(
    registry, engine, follower, model, monkeypatch
):
    version = full(registry, model, 1)
    registry.move("challenger", version, expected=None, who="test")
    registry.set_share(0.5, who="test")
    follower.catch_up()
    assert engine.serving.challenger is not None
    broken = engine.serving.challenger.checkpoint.transformer

    def failing(transformer, *args, **rest):
        if transformer is broken:
            raise RuntimeError("out of memory")
        return denoise_turn(transformer, *args, **rest)

    monkeypatch.setattr("cogrpo_core.slots.denoise_turn", failing)

    def ask(lot: float):
        return engine.submit(Request({"prompt": "x", "seed": 1}, 1, 2, lot=lot))

    futures = [ask(lot) for _ in range(LIMITS.requests) for lot in (0.0, 1.0)]
    outcomes = [one.exception(SECONDS) is None for one in futures]
    assert outcomes == [False, True] * LIMITS.requests
    follower.catch_up()
    follower.catch_up()
    assert registry.aliases().challenger is None
    assert "4 of 4 requests failed" in registry.history(2)[1].why
    assert ask(0.0).result(SECONDS).trajectories[0].policy_version == "base"


def test_a_former_version_that_is_gone_is_not_gone_back_to(
    registry, engine, follower, model, tmp_path
):
    first, second = (full(registry, model, i) for i in range(2))
    promote(registry, first)
    follower.catch_up()
    noted(engine, first, 5, 0)
    promote(registry, second)
    (tmp_path / "policies" / "versions" / first / "transformer.safetensors").unlink()
    follower.catch_up()
    noted(engine, second, 5, 5)
    for _ in range(2):
        follower.catch_up()
    assert registry.aliases().champion == second and follower.swaps["withdrawn"] == 0


def test_a_new_champion_that_does_worse_is_rolled_back_once(registry, engine, follower, model):
    first, second = (full(registry, model, i) for i in range(2))
    promote(registry, first)
    follower.catch_up()
    noted(engine, first, 5, 0)
    promote(registry, second)
    follower.catch_up()
    noted(engine, second, 5, 3)
    other = PolicyFollower(engine, PolicyRegistry(registry._store._root), limits=LIMITS)
    follower.catch_up()
    follower.catch_up()
    other.catch_up()
    assert registry.aliases().champion == first and serves(engine) == first
    assert registry.get(second).status == "rejected"
    assert registry.aliases().previous == second  # and no engine goes forward to it
    noted(engine, first, 200, 200)
    follower.catch_up()
    assert registry.aliases().champion == first


def test_what_counts_as_worse():
    good = Health(100, 2, 100, 0.1, 0.05)
    limits = Limits()
    assert fault(Health(), good, limits) is None
    assert fault(Health(100, 100), Health(), limits) is None  # nothing to compare with
    assert fault(good, good, limits) is None
    assert fault(Health(100, 11, 0), good, limits) is None
    assert "13 of 100" in (fault(Health(100, 13, 0), good, limits) or "")
    one_an_image = Health(100, 0, 100, 0.08, 0.16)  # a canary's passes have few images
    assert fault(one_an_image, good, limits) is None
    assert "2.5 times" in (fault(Health(100, 0, 100, 0.25, 0.15), good, limits) or "")
    assert fault(Health(100, 0, 39, 0.9, 0.9), good, limits) is None
