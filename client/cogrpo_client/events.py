"""From the bytes of an event stream to its events, over several connections."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from cogrpo_client.answers import unreadable
from cogrpo_client.calls import EVENT_STREAM, Call
from cogrpo_client.errors import APIConnectionError, problem_error
from cogrpo_client.sse import EventTooLarge, ServerEvent, SSEParser
from cogrpo_client.types import EVENT_TYPES, CompletedEvent, Cycle, ErrorEvent, GenerationEvent

_ID = re.compile(r"[0-9]{1,18}")
_EVENT: TypeAdapter[Any] = TypeAdapter(GenerationEvent)

Event = TypeVar("Event")


class Reader(ABC, Generic[Event]):
    """Reads a stream's events once each, also when a new connection repeats some."""

    def __init__(self, last_id: int = 0) -> None:
        self.last_id = last_id
        """Where a new connection goes on; 0 at the beginning."""
        self.done = False
        self.request_id: str | None = None
        self._connected = False
        self._parser = SSEParser()

    def may_connect(self, call: Call[None]) -> bool:
        """Whether a stream may be asked for again: a GET goes on, a POST would begin anew."""
        return call.method == "GET" or not self._connected

    def connect(self, headers: Mapping[str, str]) -> None:
        """A response begins; what the one before left unfinished is dropped. Raises `APIError`."""
        self.request_id = headers.get("x-request-id")
        self._parser = SSEParser()
        self._connected = True
        if headers.get("content-type", "").partition(";")[0].strip().lower() != EVENT_STREAM:
            raise unreadable(self.request_id)

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that `chunk` completes; the stream's last one sets `done`.

        Raises the typed error that an `error` event carries, and `APIError` for what is no event.
        """
        try:
            for event in self._parser.feed(chunk):
                parsed = None if self.done else self._read(event)
                if parsed is not None:
                    yield parsed
        except EventTooLarge:
            raise unreadable(self.request_id) from None

    def cut_off(self) -> APIConnectionError:
        """The error for a stream that ended too early."""
        return APIConnectionError("the event stream was cut off", request_id=self.request_id)

    @abstractmethod
    def _read(self, event: ServerEvent) -> Event | None:
        """An event of the wire; None for one that is not for the caller."""


class EventReader(Reader[GenerationEvent]):
    """Reads the events of a generation, which have ids to go on after."""

    def _read(self, event: ServerEvent) -> GenerationEvent | None:
        if event.name not in EVENT_TYPES:
            return None
        if _ID.fullmatch(event.id):
            if int(event.id) <= self.last_id:
                return None
            self.last_id = int(event.id)
        try:
            parsed: GenerationEvent = _EVENT.validate_json(event.data)
        except ValidationError:
            raise unreadable(self.request_id) from None
        if isinstance(parsed, ErrorEvent):
            self.done = True
            raise problem_error(parsed.error)
        self.done = isinstance(parsed, CompletedEvent)
        return parsed


class CycleReader(Reader[Cycle]):
    """Reads the records of a training cycle; each connection begins with the present one."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: Cycle | None = None

    def _read(self, event: ServerEvent) -> Cycle | None:
        if event.name != "cycle":
            return None
        try:
            cycle = Cycle.model_validate_json(event.data)
        except ValidationError:
            raise unreadable(self.request_id) from None
        if cycle == self._latest:
            return None
        self._latest = cycle
        self.done = cycle.ended
        return cycle
