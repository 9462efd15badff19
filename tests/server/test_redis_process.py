"""The embedded Redis: who may do what, where its passwords are, and what erasing leaves."""

import asyncio
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cogrpo_core.exchange.entry import Event
from cogrpo_core.exchange.erase import Selection, erase, forget_older, rewrite_file
from cogrpo_core.exchange.erasures import ERASURES
from cogrpo_core.exchange.policy_announce import CHANNEL, Announcements, announce
from cogrpo_core.exchange.policy_journal import Move
from cogrpo_core.exchange.trajectory_consumer import TrajectoryConsumer
from cogrpo_core.exchange.trajectory_log import (
    DEAD_STREAM,
    STREAM,
    TrajectoryWriter,
    connect,
    read_last,
)
from cogrpo_server.drain import DRAIN, DrainSwitch, forget_draining
from cogrpo_server.places import fresh_runtime_dir, locked_data_dir
from cogrpo_server.redis_process import EmbeddedRedis
from cogrpo_server.settings import Settings, SettingsError
from cogrpo_server.telemetry import Telemetry
from tests.core.exchange.conftest import event, wait_until

FORBIDDEN = [
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("ACL", "LIST"),
    ("EVAL", "return 1", "0"),
    ("SHUTDOWN",),
    ("DEBUG", "SLEEP", "0"),
    ("SAVE",),
    ("DEL", STREAM),
    ("SET", STREAM, "x"),
    ("GET", "cogrpo:other"),
    ("XADD", "other", "*", "a", "b"),
    ("XADD", "cogrpo:other", "*", "a", "b"),
    ("XGROUP", "DESTROY", STREAM, "trainer"),
    ("PUBLISH", "channel", "x"),
    ("CLIENT", "LIST"),
    ("MONITOR",),
]
FORBIDDEN_TO = {
    "server": [
        ("PUBLISH", CHANNEL, "x"),
        ("SUBSCRIBE", "cogrpo:cancels"),
        ("GET", DRAIN),
        ("SET", "cogrpo:metrics:a", "x"),
        ("XRANGE", STREAM, "-", "+"),
        ("XDEL", STREAM, "1-1"),
        ("XTRIM", STREAM, "MAXLEN", "0"),
        ("XADD", DEAD_STREAM, "*", "a", "b"),
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", STREAM, ">"),
        ("ZADD", ERASURES, "1", "a"),
        ("ZREMRANGEBYSCORE", ERASURES, "-inf", "+inf"),
        ("DEL", ERASURES),
    ],
    "shelf": [
        ("XADD", STREAM, "*", "a", "b"),
        ("XRANGE", STREAM, "-", "+"),
        ("XDEL", STREAM, "1-1"),
        ("BGREWRITEAOF",),
        ("SET", "cogrpo:metrics:a", "x"),
        ("SET", DRAIN + "s", "x"),
        ("ZADD", ERASURES, "1", "a"),
    ],
    "metrics": [
        ("SUBSCRIBE", CHANNEL),
        ("XADD", STREAM, "*", "a", "b"),
        ("SET", DRAIN, "x"),
        ("GET", "cogrpo:metrics:a"),
        ("DEL", "cogrpo:metrics:a"),
        ("SET", "cogrpo:metricsa", "x"),
        ("MGET", "cogrpo:metrics:a", "cogrpo:generation:a"),
        ("MULTI",),
        ("ZADD", ERASURES, "1", "a"),
    ],
    "trainer": [
        ("SUBSCRIBE", CHANNEL),
        ("PUBLISH", "cogrpo:cancels", "x"),
        ("XDEL", STREAM, "1-1"),
        ("BGREWRITEAOF",),
        ("INFO",),
        ("ZADD", ERASURES, "1", "a"),
    ],
    "operator": [
        ("PUBLISH", CHANNEL, "x"),
        ("XADD", STREAM, "*", "a", "b"),
        ("XACK", STREAM, "g", "1-1"),
        ("DEL", ERASURES),
    ],
}
WRONG_KIND: dict[str, list[tuple[str, ...]]] = {
    "server": [("XADD", ERASURES, "*", "a", "b"), ("ZRANGEBYSCORE", STREAM, "-inf", "+inf")],
    "operator": [("ZADD", STREAM, "1", "a"), ("XRANGE", ERASURES, "-", "+")],
}
"""What the rights would allow, and the kinds of the keys do not."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Settings, Path]]:
    """A data folder and its runtime folder."""
    settings = Settings(data_dir=tmp_path / "data")
    with locked_data_dir(settings.data_dir), fresh_runtime_dir(settings.data_dir) as runtime:
        yield settings, runtime


@pytest.fixture
def embedded(place: tuple[Settings, Path]) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(*place)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def urls(embedded: EmbeddedRedis, place: tuple[Settings, Path]) -> dict[str, str]:
    """The URL of each user, as its part finds it."""
    settings = place[0]
    return {
        "server": embedded.urls.log,
        "shelf": embedded.urls.shelf,
        "metrics": embedded.urls.metrics,
        "trainer": embedded.urls.trainer,
        "operator": settings.redis_url_file.read_text().strip(),
    }


def passwords(urls: dict[str, str]) -> list[str]:
    found = [re.search(r":([0-9a-f]{48})@", url) for url in urls.values()]
    return [match.group(1) for match in found if match]


def refused(connection: redis.Redis, command: tuple[str, ...]) -> bool:
    try:
        connection.execute_command(*command)
    except redis.exceptions.NoPermissionError:
        return True
    return False


def test_each_user_may_do_its_work(urls: dict[str, str]) -> None:
    writer = TrajectoryWriter(connect(urls["server"]))
    for i in range(5):
        writer.offer(event(i, user="u" if i == 3 else ""))
    assert writer.close() == 0
    with connect(urls["trainer"]) as trainer, connect(urls["operator"]) as operator:
        trainer.xadd(STREAM, {"event": "poison"})
        assert erase(Selection(user="u"), operator) == 1
        again = TrajectoryWriter(connect(urls["server"]))
        again.offer(event(3, user="u"))
        assert (again.close(), again.status().erased) == (0, 1)
        consumer = TrajectoryConsumer(trainer, "a", reclaim_seconds=0.01)
        deliveries = consumer.read()
        assert len(deliveries) == 4
        time.sleep(0.02)
        heir = TrajectoryConsumer(trainer, "b", reclaim_seconds=0.01)
        assert len(heir.read()) == 4
        heir.keep_alive()
        operator.xdel(STREAM, deliveries[3].entry.stream_id)
        time.sleep(0.02)
        assert len(TrajectoryConsumer(trainer, "c", reclaim_seconds=0.01).read()) == 3
        consumer.acknowledge(deliveries[:2])
        assert consumer.trim() == 2
        assert operator.xlen(DEAD_STREAM) == 1
        assert len(read_last(operator, 10)) == len(read_last(trainer, 10)) == 2
        assert forget_older(operator, 1000) == 0
        assert operator.info()["redis_version"].startswith("6.2")


async def test_processes_tell_each_other_and_ingresses_drain(urls: dict[str, str]) -> None:
    here, there = (Telemetry("ingress", urls["metrics"]) for _ in range(2))
    there.open()
    try:
        async with asyncio.timeout(10):
            while [one.process for one in await here.others()] != [there.process]:
                await asyncio.sleep(0.02)
    finally:
        there.close()
    switch, other = (DrainSwitch(urls["shelf"]) for _ in range(2))
    await switch.set(True)
    other.open(switch.close)
    async with asyncio.timeout(10):
        while not other.state.draining:
            await asyncio.sleep(0.02)
    await switch.close()
    await other.close()
    forget_draining(urls["shelf"])
    with connect(urls["shelf"]) as connection:
        assert connection.get(DRAIN) is None


@pytest.mark.parametrize("who", ["shelf", "trainer"])
def test_engines_hear_what_ingress_and_trainer_announce(urls: dict[str, str], who: str) -> None:
    with connect(urls["server"]) as ears, connect(urls[who]) as mouth:
        announcements = Announcements(ears)
        assert not announcements.wait(0.1)
        move = Move(n=1, at_ms=1, who="a", alias="champion", was=None, to=None, evidence={})
        assert announce(mouth, move)
        assert announcements.wait(4)
        announcements.close()


@pytest.mark.parametrize("user", ["server", "shelf", "metrics", "trainer", "operator"])
def test_and_nothing_else(user: str, urls: dict[str, str]) -> None:
    with connect(urls[user]) as connection:
        assert connection.ping()
        allowed = [
            command
            for command in FORBIDDEN + FORBIDDEN_TO[user]
            if not refused(connection, command)
        ]
    assert allowed == []


@pytest.mark.parametrize("user", ["server", "operator"])
def test_nor_with_the_other_keys_commands(user: str, urls: dict[str, str]) -> None:
    writer = TrajectoryWriter(connect(urls["server"]))
    writer.offer(event(0))
    assert writer.close() == 0
    with connect(urls["operator"]) as operator:
        erase(Selection(user="u"), operator)
    with connect(urls[user]) as connection:
        for command in WRONG_KIND[user]:
            with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
                connection.execute_command(*command)


def test_without_a_password_nobody_gets_in(urls: dict[str, str]) -> None:
    for url in (
        re.sub(r"//.*@", "//", urls["server"]),
        re.sub(r":[0-9a-f]{48}@", ":wrong@", urls["server"]),
        urls["server"].replace("//server", "//default"),
    ):
        with connect(url) as connection, pytest.raises(redis.AuthenticationError):
            connection.ping()


def test_passwords_are_private_lasting_and_nowhere_else(
    embedded: EmbeddedRedis, place: tuple[Settings, Path], urls: dict[str, str]
) -> None:
    settings, runtime = place
    with connect(urls["operator"]) as connection:
        pid = connection.info()["process_id"]
    known = passwords(urls)
    assert len(set(known)) == 5
    command = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert not any(password.encode() in command for password in known)
    holders = {
        path.name
        for path in settings.data_dir.rglob("*")
        if path.is_file() and any(password.encode() in path.read_bytes() for password in known)
    }
    assert holders == {"passwords.json", "redis.url"}
    for name in ("redis/passwords.json", "redis/redis.conf", "redis.url"):
        assert (settings.data_dir / name).stat().st_mode & 0o777 == 0o600
    embedded.stop()
    assert not settings.redis_url_file.exists()
    assert EmbeddedRedis(settings, runtime).urls.log == urls["server"]


def test_a_damaged_password_file_is_one_clear_error(place: tuple[Settings, Path]) -> None:
    settings, runtime = place
    EmbeddedRedis(settings, runtime)
    file = settings.data_dir / "redis" / "passwords.json"
    for text in ("", "{}", '{"server": "short"}', file.read_text().replace("{", '{"x": 1,')):
        file.write_text(text)
        with pytest.raises(SettingsError, match="delete it"):
            EmbeddedRedis(settings, runtime)


def test_killed_it_comes_back_with_its_data(
    embedded: EmbeddedRedis, urls: dict[str, str], place: tuple[Settings, Path]
) -> None:
    writer = TrajectoryWriter(connect(urls["server"]))
    for i in range(50):
        writer.offer(event(i))
    wait_until(lambda: writer.status().written == 50)
    with connect(urls["operator"]) as connection:
        time.sleep(1.2)  # the append-only file is forced to disk every second
        os.kill(connection.info()["process_id"], 9)
        wait_until(lambda: not embedded.is_running())
        for i in range(50, 60):
            writer.offer(event(i))
        embedded.start()
        wait_until(lambda: writer.status().written == 60)
        writer.close()
        ids = [entry.event_id for entry in reversed(read_last(connection, 100))]
    assert ids == [f"gen-{i}" for i in range(60)]


def test_what_is_erased_leaves_the_file_with_its_next_rewrite(
    embedded: EmbeddedRedis, urls: dict[str, str], place: tuple[Settings, Path]
) -> None:
    file = place[0].data_dir / "redis" / "appendonly.aof"
    writer = TrajectoryWriter(connect(urls["server"]))
    secrets = [f"user-{i}-7f3a9c" for i in range(3)]
    for i, secret in enumerate(secrets):
        writer.offer(Event(f"gen-{i}", "r", event(i).trajectory, secret))
    writer.close()
    with connect(urls["operator"]) as connection:

        def is_there(secret: str) -> bool:
            return secret.encode() in file.read_bytes()

        def rewrite() -> None:
            size = connection.info()["aof_base_size"]
            wait_until(lambda: rewrite_file(connection))
            wait_until(
                lambda: (
                    not connection.info()["aof_rewrite_in_progress"]
                    and connection.info()["aof_base_size"] != size
                )
            )

        rewrite()
        assert [is_there(secret) for secret in secrets] == [True, True, True]
        assert erase(Selection(user=secrets[1]), connection) == 1
        assert is_there(secrets[1])
        rewrite()
        assert [is_there(secret) for secret in secrets] == [True, False, True]
        assert len(read_last(connection, 10)) == 2
