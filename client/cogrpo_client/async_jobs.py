"""The twins of `jobs.py` for asyncio: wait for what runs on the service, look at it, end it."""

from cogrpo_client import calls
from cogrpo_client.streams import AsyncCycleStream, AsyncEventStream
from cogrpo_client.transport import AsyncTransport
from cogrpo_client.types import Cycle, Evaluation, Generation, GenerationRecord, Policy
from cogrpo_client.waiting import watch_cycle, watch_evaluation, watch_generation


class AsyncJob:
    """A generation under way; `record` is how the service described it last."""

    def __init__(self, transport: AsyncTransport, record: GenerationRecord) -> None:
        self._transport = transport
        self.record = record

    @property
    def id(self) -> str:
        """The generation's id."""
        return self.record.id

    async def refresh(self) -> GenerationRecord:
        """The record of this moment."""
        self.record = await self._transport.send(calls.generation(self.id))
        return self.record

    async def wait(self, timeout: float | None = None) -> Generation:
        """The pictures, within `timeout` seconds (the client's `job_timeout` if left out).

        Raises the typed error with which the generation ended: `ConflictError` if it was cancelled.
        """
        return await self._transport.wait(watch_generation(self.id), timeout)

    def events(self, *, after: int = 0) -> AsyncEventStream:
        """Its events from the first on, or those after an id; closing them cancels nothing."""
        return AsyncEventStream(self._transport, calls.events(self.id), after)

    async def cancel(self) -> GenerationRecord:
        """End it at its next step; what has ended stays as it is."""
        self.record = await self._transport.send(calls.cancel(self.id))
        return self.record


class AsyncCycleRun:
    """A training cycle under way; `record` is how the service described it last."""

    def __init__(self, transport: AsyncTransport, record: Cycle) -> None:
        self._transport = transport
        self.record = record

    @property
    def id(self) -> str:
        """The cycle's id."""
        return self.record.id

    async def refresh(self) -> Cycle:
        """The record of this moment."""
        self.record = await self._transport.send(calls.cycle(self.id))
        return self.record

    async def wait(self, timeout: float | None = None) -> Cycle:
        """The completed cycle, within `timeout` seconds (the client's `job_timeout` if left out).

        Raises `APIError` if it failed or was cancelled.
        """
        self.record = await self._transport.wait(watch_cycle(self.id), timeout)
        return self.record

    def events(self) -> AsyncCycleStream:
        """It as it is, and at every change to its end; closing them cancels nothing."""
        return AsyncCycleStream(self._transport, calls.cycle_events(self.id))

    async def cancel(self) -> Cycle:
        """End it at its next iteration."""
        self.record = await self._transport.send(calls.cancel_cycle(self.id))
        return self.record


class AsyncEvaluationRun:
    """An evaluation of a policy version under way."""

    def __init__(self, transport: AsyncTransport, record: Policy) -> None:
        self._transport = transport
        self.record = record

    @property
    def version(self) -> str:
        """The version that is evaluated."""
        return self.record.version

    async def refresh(self) -> Policy:
        """The version with its latest evaluation."""
        self.record = await self._transport.send(calls.policy(self.version))
        return self.record

    async def wait(self, timeout: float | None = None) -> Evaluation:
        """The completed evaluation, within `timeout` seconds (the client's `job_timeout`).

        Raises `APIError` if it failed or was cancelled.
        """
        return await self._transport.wait(watch_evaluation(self.version), timeout)

    async def cancel(self) -> Policy:
        """End it at its next batch."""
        self.record = await self._transport.send(calls.cancel_evaluation(self.version))
        return self.record
