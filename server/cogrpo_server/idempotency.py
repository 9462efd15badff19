"""Same Idempotency-Key, same result: what makes a client's retry safe.

Results are kept in the ingress's memory, bounded in number, bytes and time.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cogrpo_server.jobs import Made, Refused

MAX_ENTRIES = 256
MAX_BYTES = 64 * 2**20
KEPT_SECONDS = 600.0

Work = Callable[[], Awaitable[Made | Refused]]


class KeyReused(Exception):
    """The key came before with another body."""


@dataclass(eq=False)
class _Entry:
    body: bytes
    task: "asyncio.Task[Made | Refused]"
    expires: float
    waiting: int = 0
    size: int = 0


class Replays:
    """Runs each keyed request once, while it is remembered, whoever asks how often."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._max_bytes = max_bytes

    async def run(self, key: tuple[str, str], body: bytes, work: Work) -> Made | Refused:
        """The result of `work`, or of an earlier call with the same key.

        `key` is (caller, Idempotency-Key) and `body` a digest of the request. Only pictures are
        remembered: a refused request may be tried again. Raises `KeyReused`.
        """
        while True:
            self._expire()
            entry = self._entries.get(key)
            if entry is None:
                entry = _Entry(
                    body, asyncio.ensure_future(_call(work)), time.monotonic() + KEPT_SECONDS
                )
                self._entries[key] = entry
            elif entry.body != body:
                raise KeyReused
            outcome = await self._wait(key, entry)
            if outcome is not None:
                return outcome

    async def _wait(self, key: tuple[str, str], entry: _Entry) -> Made | Refused | None:
        """None when the work was cancelled by another caller who left: it has to start anew."""
        entry.waiting += 1
        try:
            outcome = await asyncio.shield(entry.task)
        except asyncio.CancelledError:
            if entry.task.cancelled() or (entry.waiting == 1 and not entry.task.done()):
                self._forget(key, entry)
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return None
        except BaseException:
            self._forget(key, entry)
            raise
        finally:
            entry.waiting -= 1
        if isinstance(outcome, Made):
            entry.size = sum(len(picture.png) for picture in outcome.pictures)
            self._bound()
        else:
            self._forget(key, entry)
        return outcome

    def _forget(self, key: tuple[str, str], entry: _Entry) -> None:
        entry.task.cancel()
        if self._entries.get(key) is entry:
            del self._entries[key]

    def _expire(self) -> None:
        now = time.monotonic()
        for key, entry in list(self._entries.items()):
            if entry.expires < now and entry.task.done():
                del self._entries[key]

    def _bound(self) -> None:
        """Drops the oldest finished results beyond the bounds."""
        size = sum(entry.size for entry in self._entries.values())
        for key, entry in list(self._entries.items()):
            if size <= self._max_bytes and len(self._entries) <= MAX_ENTRIES:
                return
            if entry.task.done():
                size -= entry.size
                del self._entries[key]


async def _call(work: Work) -> Made | Refused:
    return await work()
