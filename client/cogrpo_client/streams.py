"""What happens, as it happens: iterators of events that disconnect when they are closed."""

from collections.abc import AsyncGenerator, Generator
from typing import Generic, Self, TypeVar

from cogrpo_client.calls import Call
from cogrpo_client.events import CycleReader, EventReader, Reader
from cogrpo_client.transport import AsyncTransport, Transport
from cogrpo_client.types import Cycle, GenerationEvent

Event = TypeVar("Event")


class _Stream(Generic[Event]):
    """The request is sent when the first event is asked for."""

    def __init__(self, transport: Transport, call: Call[None], reader: Reader[Event]) -> None:
        self._reader = reader
        self._events: Generator[Event] = transport.events(call, reader)

    def close(self) -> None:
        """Disconnect."""
        self._events.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventStream(_Stream[GenerationEvent]):
    """Start, step, preview and completed events, in their order; an error event is raised.

    The request is sent when the first event is asked for. Leaving the `with` block, or `close`,
    disconnects, and cancels the generation if it was begun by this stream.
    """

    def __init__(self, transport: Transport, call: Call[None], last_event_id: int = 0) -> None:
        super().__init__(transport, call, EventReader(last_event_id))

    @property
    def last_event_id(self) -> int:
        """The id of the last event, to go on after it elsewhere; 0 before the first."""
        return self._reader.last_id


class CycleStream(_Stream[Cycle]):
    """A training cycle as it is, and again at every change, to its end, however that is.

    The request is sent when the first record is asked for. Leaving the `with` block, or `close`,
    disconnects, and cancels nothing.
    """

    def __init__(self, transport: Transport, call: Call[None]) -> None:
        super().__init__(transport, call, CycleReader())


class _AsyncStream(Generic[Event]):
    """The request is sent when the first event is asked for."""

    def __init__(self, transport: AsyncTransport, call: Call[None], reader: Reader[Event]) -> None:
        self._reader = reader
        self._events: AsyncGenerator[Event, None] = transport.events(call, reader)

    async def close(self) -> None:
        """Disconnect."""
        await self._events.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncEventStream(_AsyncStream[GenerationEvent]):
    """Start, step, preview and completed events, in their order; an error event is raised.

    The request is sent when the first event is asked for. Leaving the `async with` block, or
    `close`, disconnects, and cancels the generation if it was begun by this stream.
    """

    def __init__(self, transport: AsyncTransport, call: Call[None], last_event_id: int = 0) -> None:
        super().__init__(transport, call, EventReader(last_event_id))

    @property
    def last_event_id(self) -> int:
        """The id of the last event, to go on after it elsewhere; 0 before the first."""
        return self._reader.last_id


class AsyncCycleStream(_AsyncStream[Cycle]):
    """A training cycle as it is, and again at every change, to its end, however that is.

    The request is sent when the first record is asked for. Leaving the `async with` block, or
    `close`, disconnects, and cancels nothing.
    """

    def __init__(self, transport: AsyncTransport, call: Call[None]) -> None:
        super().__init__(transport, call, CycleReader())
