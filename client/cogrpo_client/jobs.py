"""Handles for what runs on the service: wait for it, look at it, end it."""

from cogrpo_client import calls
from cogrpo_client.streams import CycleStream, EventStream
from cogrpo_client.transport import Transport
from cogrpo_client.types import Cycle, Evaluation, Generation, GenerationRecord, Policy
from cogrpo_client.waiting import watch_cycle, watch_evaluation, watch_generation


class Job:
    """A generation under way; `record` is how the service described it last."""

    def __init__(self, transport: Transport, record: GenerationRecord) -> None:
        self._transport = transport
        self.record = record

    @property
    def id(self) -> str:
        """The generation's id."""
        return self.record.id

    def refresh(self) -> GenerationRecord:
        """The record of this moment."""
        self.record = self._transport.send(calls.generation(self.id))
        return self.record

    def wait(self, timeout: float | None = None) -> Generation:
        """The pictures, within `timeout` seconds (the client's `job_timeout` if left out).

        Raises the typed error with which the generation ended: `ConflictError` if it was cancelled.
        """
        return self._transport.wait(watch_generation(self.id), timeout)

    def events(self, *, after: int = 0) -> EventStream:
        """Its events from the first on, or those after an id; closing them cancels nothing."""
        return EventStream(self._transport, calls.events(self.id), after)

    def cancel(self) -> GenerationRecord:
        """End it at its next step; what has ended stays as it is."""
        self.record = self._transport.send(calls.cancel(self.id))
        return self.record


class CycleRun:
    """A training cycle under way; `record` is how the service described it last."""

    def __init__(self, transport: Transport, record: Cycle) -> None:
        self._transport = transport
        self.record = record

    @property
    def id(self) -> str:
        """The cycle's id."""
        return self.record.id

    def refresh(self) -> Cycle:
        """The record of this moment."""
        self.record = self._transport.send(calls.cycle(self.id))
        return self.record

    def wait(self, timeout: float | None = None) -> Cycle:
        """The completed cycle, within `timeout` seconds (the client's `job_timeout` if left out).

        Raises `APIError` if it failed or was cancelled.
        """
        self.record = self._transport.wait(watch_cycle(self.id), timeout)
        return self.record

    def events(self) -> CycleStream:
        """It as it is, and at every change to its end; closing them cancels nothing."""
        return CycleStream(self._transport, calls.cycle_events(self.id))

    def cancel(self) -> Cycle:
        """End it at its next iteration."""
        self.record = self._transport.send(calls.cancel_cycle(self.id))
        return self.record


class EvaluationRun:
    """An evaluation of a policy version under way."""

    def __init__(self, transport: Transport, record: Policy) -> None:
        self._transport = transport
        self.record = record

    @property
    def version(self) -> str:
        """The version that is evaluated."""
        return self.record.version

    def refresh(self) -> Policy:
        """The version with its latest evaluation."""
        self.record = self._transport.send(calls.policy(self.version))
        return self.record

    def wait(self, timeout: float | None = None) -> Evaluation:
        """The completed evaluation, within `timeout` seconds (the client's `job_timeout`).

        Raises `APIError` if it failed or was cancelled.
        """
        return self._transport.wait(watch_evaluation(self.version), timeout)

    def cancel(self) -> Policy:
        """End it at its next batch."""
        self.record = self._transport.send(calls.cancel_evaluation(self.version))
        return self.record
