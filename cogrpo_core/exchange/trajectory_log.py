"""The log of finished pictures: a Redis stream, written by the server and read by the trainer.

One entry a picture: its event id, its request, the policy version that made it, and the
trajectory's bytes. Writing never blocks the caller. An entry may arrive twice; its event id tells.
"""

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from cogrpo_core.trajectory import Trajectory

STREAM = "cogrpo:trajectories"
MAX_ENTRIES = 20_000
"""About how many entries the stream keeps: 60 MB of 256-token trajectories."""
MAX_READ = 1000

_BATCH = 64
_CONNECT_SECONDS = 2.0
_REPLY_SECONDS = 5.0
_IDLE_CHECK_SECONDS = 3.0
_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0

logger = logging.getLogger(__name__)


class TrajectoryLogError(ValueError):
    """The log cannot be reached or used."""


def connect(url: str) -> redis.Redis:
    """A connection whose every wait is bounded; it is made when it is first used.

    `url` is redis://, rediss:// or unix://. Raises `TrajectoryLogError` for any other.
    """
    try:
        return redis.Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=_REPLY_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        raise TrajectoryLogError(
            "the Redis URL is not valid; write redis://:PASSWORD@HOST:PORT/0 or unix://PATH"
        ) from None


@dataclass(frozen=True)
class Event:
    """A finished picture on its way to the log."""

    event_id: str
    request_id: str
    trajectory: "Trajectory"

    def fields(self) -> dict[Any, Any]:
        """The stream entry."""
        return {
            "event": self.event_id,
            "request": self.request_id,
            "policy": self.trajectory.policy_version,
            "trajectory": self.trajectory.to_bytes(),
        }


@dataclass(frozen=True)
class Entry:
    """An entry as it lies in the stream; `trajectory()` decodes it."""

    stream_id: str
    event_id: str
    request_id: str
    policy_version: str
    data: bytes

    def trajectory(self) -> "Trajectory":
        """The record; raises `TrajectoryError` when the bytes are none."""
        from cogrpo_core.trajectory import Trajectory  # with torch, which writing does not need

        return Trajectory.from_bytes(self.data)


def read_last(connection: redis.Redis, count: int, stream: str = STREAM) -> list[Entry]:
    """The newest `count` (1 ... 1000) entries, newest first. Raises `TrajectoryLogError`."""
    if not 1 <= count <= MAX_READ:
        raise TrajectoryLogError(f"between 1 and {MAX_READ} entries can be read, not {count}")
    try:
        # redis-py types replies for both decodings and both protocols; this connection has one.
        rows: Any = connection.xrevrange(stream, count=count)
    except redis.RedisError as error:
        raise TrajectoryLogError(f"Redis does not answer ({type(error).__name__})") from error
    return [_entry(stream_id, fields) for stream_id, fields in rows]


def _entry(stream_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    return Entry(
        stream_id=stream_id.decode(),
        event_id=text(b"event"),
        request_id=text(b"request"),
        policy_version=text(b"policy"),
        data=fields.get(b"trajectory", b""),
    )


@dataclass(frozen=True)
class WriterStatus:
    """Counts since the start, and whether Redis answered last time."""

    connected: bool
    waiting: int
    written: int
    dropped: int


class TrajectoryWriter:
    """Appends events to the stream from a thread of its own.

    At most `capacity` events wait in memory. While Redis is away they are tried again; when the
    memory is full the oldest is dropped, counted and logged.
    """

    def __init__(
        self,
        connection: redis.Redis,
        *,
        stream: str = STREAM,
        max_entries: int = MAX_ENTRIES,
        capacity: int = 2000,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._max_entries = max_entries
        self._capacity = capacity
        self._waiting: deque[Event] = deque()
        self._changed = threading.Condition()  # guards all that follows
        self._in_flight = 0
        self._stopping = False
        self._connected = True
        self._written = 0
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="trajectory-writer", daemon=True)
        self._thread.start()

    def offer(self, event: Event) -> None:
        """Takes the event over; returns at once."""
        with self._changed:
            self._waiting.append(event)
            self._drop_beyond_capacity()
            self._changed.notify()

    def status(self) -> WriterStatus:
        """The counts of this moment."""
        with self._changed:
            waiting = len(self._waiting) + self._in_flight
            return WriterStatus(self._connected, waiting, self._written, self._dropped)

    def close(self, timeout: float = 5.0) -> int:
        """Writes what waits for at most `timeout` seconds; gives how many remain unwritten."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        lost = self.status().waiting
        if lost:
            logger.error("%d trajectories could not be written before the end", lost)
        return lost

    def _run(self) -> None:
        delay = _FIRST_RETRY_SECONDS
        while True:
            with self._changed:
                if not self._waiting and not self._stopping:
                    self._changed.wait(_IDLE_CHECK_SECONDS)
                if not self._waiting and self._stopping:
                    return
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                self._in_flight = len(batch)
            if self._write(batch):
                delay = _FIRST_RETRY_SECONDS
                continue
            with self._changed:
                if self._stopping:
                    return
                self._changed.wait_for(lambda: self._stopping, delay)
            delay = min(2 * delay, _LAST_RETRY_SECONDS)

    def _write(self, batch: list[Event]) -> bool:
        """Appends the batch, or asks whether Redis is there when it is empty."""
        outcomes: list[Any] = []
        error: redis.RedisError | None = None
        try:
            if batch:
                outcomes = self._append(batch)
            else:
                self._connection.ping()
        except redis.RedisError as caught:
            error = caught
        outcomes = outcomes or [error] * len(batch)
        failed = [
            event for event, outcome in zip(batch, outcomes) if isinstance(outcome, Exception)
        ]
        error = error or next((one for one in outcomes if isinstance(one, redis.RedisError)), None)
        with self._changed:
            self._in_flight = 0
            self._written += len(batch) - len(failed)
            self._waiting.extendleft(reversed(failed))
            self._drop_beyond_capacity()
        self._note(error)
        return error is None

    def _append(self, batch: list[Event]) -> list[Any]:
        """The reply, or the error, to each event."""
        with self._connection.pipeline(transaction=False) as pipeline:
            for event in batch:
                pipeline.xadd(
                    self._stream, event.fields(), maxlen=self._max_entries, approximate=True
                )
            return pipeline.execute(raise_on_error=False)

    def _drop_beyond_capacity(self) -> None:
        while len(self._waiting) > self._capacity:
            self._waiting.popleft()
            self._dropped += 1
            if self._dropped & (self._dropped - 1) == 0:  # at 1, 2, 4, 8 ...: said, not repeated
                logger.error("memory for trajectories is full: %d dropped so far", self._dropped)

    def _note(self, error: redis.RedisError | None) -> None:
        connected = error is None
        with self._changed:
            changed, self._connected = connected != self._connected, connected
            waiting = len(self._waiting)
        if changed and connected:
            logger.warning("the trajectory log is back; %d entries wait", waiting)
        elif changed:
            why = type(error).__name__
            logger.warning("the trajectory log is away (%s); entries wait in memory", why)
