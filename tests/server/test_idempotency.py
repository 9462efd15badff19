"""`Replays`: one run a key, whoever waits and whoever leaves."""

import asyncio

import pytest

from cogrpo_client.types import Attribution
from cogrpo_server import idempotency
from cogrpo_server.idempotency import KeyReused, Replays
from cogrpo_server.jobs import Made, Picture, Refused

KEY = ("caller", "key")
FACTS = Attribution(
    model="m",
    policy_version="p",
    schedule="s",
    steps_planned=1,
    steps_used=1,
    queue_ms=0,
    inference_ms=0,
)


def made(size: int = 1) -> Made:
    return Made("id", 0, True, [Picture(b"x" * size, 0, "id-0")], FACTS)


class Work:
    """Counts its runs; each ends when `go` is set."""

    def __init__(self, outcome: Made | Refused) -> None:
        self.outcome = outcome
        self.runs = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self) -> Made | Refused:
        self.runs += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.outcome


async def test_callers_at_once_share_one_run() -> None:
    replays, work = Replays(), Work(made())
    callers = [asyncio.ensure_future(replays.run(KEY, b"body", work)) for _ in range(3)]
    await asyncio.sleep(0)
    work.go.set()
    assert await asyncio.gather(*callers) == [work.outcome] * 3
    assert await replays.run(KEY, b"body", work) is work.outcome
    assert work.runs == 1


async def test_the_work_goes_on_while_somebody_waits_and_stops_with_the_last() -> None:
    replays, work = Replays(), Work(made())
    first, second = (asyncio.ensure_future(replays.run(KEY, b"body", work)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    assert work.cancelled == 0
    second.cancel()
    await asyncio.sleep(0.01)
    assert work.cancelled == 1
    work.go.set()
    assert await replays.run(KEY, b"body", work) is work.outcome
    assert work.runs == 2


async def test_work_that_is_cancelled_from_elsewhere_starts_anew_for_who_still_waits() -> None:
    replays, work = Replays(), Work(made())
    waiting = asyncio.ensure_future(replays.run(KEY, b"body", work))
    await asyncio.sleep(0.01)
    replays._entries[KEY].task.cancel()
    await asyncio.sleep(0.01)
    work.go.set()
    assert await waiting is work.outcome
    assert (work.runs, work.cancelled) == (2, 1)


async def test_refusals_and_errors_are_not_remembered() -> None:
    replays, work = Replays(), Work(Refused("overloaded", "full"))
    work.go.set()
    assert await replays.run(KEY, b"body", work) == work.outcome
    work.outcome = made()
    assert await replays.run(KEY, b"body", work) == work.outcome

    async def broken() -> Made | Refused:
        raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            await replays.run(("caller", "other"), b"body", broken)


async def test_keys_belong_to_callers_and_bodies() -> None:
    replays, work = Replays(), Work(made())
    work.go.set()
    await replays.run(("a", "key"), b"body", work)
    await replays.run(("b", "key"), b"body", work)
    assert work.runs == 2
    with pytest.raises(KeyReused):
        await replays.run(("a", "key"), b"another body", work)


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_ENTRIES", 5)
    replays, work = Replays(max_bytes=1000), Work(made(300))
    work.go.set()
    for i in range(20):
        await replays.run(("caller", str(i)), b"body", work)
    assert list(replays._entries) == [("caller", str(i)) for i in (17, 18, 19)]
    work.outcome = made(1)
    for i in range(20, 40):
        await replays.run(("caller", str(i)), b"body", work)
    assert len(replays._entries) == 5
    monkeypatch.setattr(idempotency, "KEPT_SECONDS", -1.0)
    await replays.run(("caller", "last"), b"body", work)
    await replays.run(("caller", "last"), b"body", work)
    assert work.runs == 42
