"""The faults of Redis and the count of what is left, on a real redis-server."""

import threading
import time
from collections.abc import Iterator

import pytest
import redis as redis_client

from cogrpo_core.exchange.trajectory_log import STREAM, connect
from cogrpo_server.bench import scenario_log
from cogrpo_server.bench.redis_faults import Gate, Redis, running_gate, running_redis
from cogrpo_server.bench.scenario_log import count_kept


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_redis(tmp_path_factory.mktemp("r")) as server:
        yield server


@pytest.fixture(scope="module")
def gate(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    path = tmp_path_factory.mktemp("g") / "gate.sock"
    with running_gate(path, redis.socket) as gate:
        yield gate


def through(gate: Gate) -> redis_client.Redis:
    return connect(f"unix://{gate.path}")


def add(redis: Redis, *event_ids: str) -> None:
    with redis.connect() as connection:
        for event_id in event_ids:
            connection.xadd(STREAM, {"event": event_id, "trajectory": "x"})


def wait_until_written(redis: Redis) -> None:
    """Until Redis has given its file all that it was given; behind a slow sync that comes late."""
    until = time.monotonic() + 20
    with redis.connect() as connection:
        while connection.info("persistence")["aof_buffer_length"]:
            assert time.monotonic() < until, "Redis does not write what it was given"
            time.sleep(0.05)


def test_entries_are_counted_by_id_and_the_log_is_empty_after(redis: Redis) -> None:
    add(redis, "a-0", "b-0", "b-0", "z-0")
    kept = count_kept(redis, {"a-0": 1.0, "b-0": 2.0}, None)
    assert (kept.made, kept.lost, kept.lost_beyond_bound) == (2, 0, 0)
    assert (kept.twice, kept.foreign) == (1, 1)
    assert count_kept(redis, {}, None).foreign == 0


def test_what_comes_later_is_waited_for(redis: Redis) -> None:
    later = threading.Timer(0.5, add, (redis, "a-0"))
    later.start()
    assert count_kept(redis, {"a-0": 1.0}, None).lost == 0
    later.join()


def test_only_what_was_answered_just_before_a_death_may_be_lost(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenario_log, "SETTLE_SECONDS", 0.1)
    answered = {"early-0": 7.9, "last-0": 8.1, "dying-0": 10.0, "after-0": 10.1}
    kept = count_kept(redis, answered, died=10.0)
    assert (kept.lost, kept.lost_beyond_bound) == (4, 2)
    kept = count_kept(redis, answered, died=None)
    assert (kept.lost, kept.lost_beyond_bound) == (4, 4)


def test_all_entries_are_counted_over_pages(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario_log, "_PAGE", 3)
    ids = [f"e{n}-0" for n in range(9)]
    add(redis, *ids)
    assert count_kept(redis, dict.fromkeys(ids, 1.0), None).lost == 0


def test_a_gate_passes_all_and_slows_requests_while_told_to(redis: Redis, gate: Gate) -> None:
    with through(gate) as connection:
        connection.set("big", b"x" * 300_000)
        assert connection.get("big") == b"x" * 300_000
        gate.delay = 0.2
        began = time.monotonic()
        connection.ping()
        gate.delay = 0.0
    assert time.monotonic() - began >= 0.2


def test_a_full_redis_refuses_writes_until_it_has_room(redis: Redis) -> None:
    redis.limit_memory(1)
    with pytest.raises(redis_client.RedisError, match="maxmemory"):
        add(redis, "a-0")
    redis.limit_memory(0)
    add(redis, "a-0")
    assert count_kept(redis, {"a-0": 1.0}, None).lost == 0


def test_a_held_redis_answers_when_it_may_go_on(redis: Redis) -> None:
    answered = threading.Event()

    def ask() -> None:
        add(redis, "a-0")
        answered.set()

    redis.hold()
    asking = threading.Thread(target=ask)
    asking.start()
    assert not answered.wait(0.3)
    redis.go_on()
    assert answered.wait(10)
    asking.join()
    assert count_kept(redis, {"a-0": 1.0}, None).lost == 0


def test_a_killed_redis_comes_back_with_its_data_behind_the_same_gate(
    redis: Redis, gate: Gate
) -> None:
    add(redis, "a-0")
    wait_until_written(redis)
    redis.kill()
    with through(gate) as connection, pytest.raises(redis_client.RedisError):
        connection.ping()
    redis.start()
    with through(gate) as connection:
        assert connection.xlen(STREAM) == 1
    assert count_kept(redis, {"a-0": 1.0}, None).lost == 0
