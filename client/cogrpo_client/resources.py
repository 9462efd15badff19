"""The parts of `Client`: `generations`, and `admin` with `cycles` and `policies`."""

from collections.abc import Iterator

from cogrpo_client import calls
from cogrpo_client.jobs import CycleRun, EvaluationRun
from cogrpo_client.paging import page_size
from cogrpo_client.streams import CycleStream, EventStream
from cogrpo_client.transport import Transport
from cogrpo_client.types import (
    Canary,
    Cycle,
    Drain,
    Erased,
    Feedback,
    GenerationRecord,
    Policy,
    Promotion,
    Replay,
    Replica,
)


class Generations:
    """What this API key asked for, as long as the service keeps it. Methods raise `APIError`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[GenerationRecord]:
        """All generations, newest first, without their pictures; `limit` is the size of a page."""
        return self._transport.pages(calls.generations, page_size(limit))

    def get(self, id: str) -> GenerationRecord:
        """One generation, with its pictures once it has them."""
        return self._transport.send(calls.generation(id))

    def events(self, id: str, *, after: int = 0) -> EventStream:
        """Its events from the first on, or those after an id; closing them cancels nothing."""
        return EventStream(self._transport, calls.events(id), after)

    def cancel(self, id: str) -> GenerationRecord:
        """End it at its next step; what has ended stays as it is."""
        return self._transport.send(calls.cancel(id))

    def delete(self, id: str) -> Erased:
        """Cancel it, and erase its record, pictures and logged trajectories."""
        return self._transport.send(calls.delete(id))

    def delete_user(self, user: str) -> Erased:
        """Erase all generations of a user; it takes the scope admin."""
        return self._transport.send(calls.delete_user(user))

    def replay(self, id: str) -> Replay:
        """Make it again from what was logged, and say whether the tokens are identical."""
        return self._transport.send(calls.replay(id))

    def feedback(self, id: str, score: float, *, image: int | None = None) -> Feedback:
        """Store a score from 0 (bad) to 1 (good) of one picture, or of all."""
        return self._transport.send(calls.feedback(id, score, image))


class Cycles:
    """Training cycles. Methods raise `APIError`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def trigger(
        self,
        *,
        model_iterations: int | None = None,
        schedule_iterations: int | None = None,
        reason: str | None = None,
    ) -> CycleRun:
        """Begin a cycle; what is left out is the trainer's setting."""
        call = calls.trigger(
            model_iterations=model_iterations,
            schedule_iterations=schedule_iterations,
            reason=reason,
        )
        return CycleRun(self._transport, self._transport.send(call))

    def list(self, *, limit: int | None = None) -> Iterator[Cycle]:
        """All cycles, newest first; `limit` is the size of a page."""
        return self._transport.pages(calls.cycles, page_size(limit))

    def get(self, id: str) -> Cycle:
        """One cycle."""
        return self._transport.send(calls.cycle(id))

    def events(self, id: str) -> CycleStream:
        """It as it is, and at every change to its end; closing them cancels nothing."""
        return CycleStream(self._transport, calls.cycle_events(id))

    def cancel(self, id: str) -> Cycle:
        """End it at its next iteration."""
        return self._transport.send(calls.cancel_cycle(id))


class Policies:
    """Versions of model and schedule. Methods raise `APIError`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Policy]:
        """All versions, newest first; `limit` is the size of a page."""
        return self._transport.pages(calls.policies, page_size(limit))

    def get(self, version: str) -> Policy:
        """One version."""
        return self._transport.send(calls.policy(version))

    def promote(
        self, version: str, *, force: bool = False, reason: str = "", expected: str | None = None
    ) -> Promotion:
        """Make it the champion; `force` does so without evidence, with a reason, and is audited.

        `expected` is who must be champion now, "base" for the base model; anybody if left out.
        """
        return self._transport.send(calls.promote(version, force, reason, expected))

    def rollback(self, *, reason: str = "", expected: str | None = None) -> Promotion:
        """Make the former champion the champion again; `expected` is who must be it now."""
        return self._transport.send(calls.rollback(reason, expected))

    def canary(self) -> Canary:
        """The challenger, and the share of the requests that it gets."""
        return self._transport.send(calls.canary())

    def set_canary(self, share: float, *, reason: str = "") -> Canary:
        """Give the challenger this share of the requests, 0 to 1."""
        return self._transport.send(calls.set_canary(share, reason))

    def evaluate(
        self,
        version: str,
        *,
        against: str | None = None,
        suite: str | None = None,
        prompts: int | None = None,
    ) -> EvaluationRun:
        """Begin a paired test against another version, the champion if left out."""
        call = calls.evaluate(version, against=against, suite=suite, prompts=prompts)
        return EvaluationRun(self._transport, self._transport.send(call))

    def cancel_evaluation(self, version: str) -> Policy:
        """End its evaluation at the next batch; one that has ended stays as it is."""
        return self._transport.send(calls.cancel_evaluation(version))


class Admin:
    """The operator's side; it takes an API key with the scope admin."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.cycles = Cycles(transport)
        self.policies = Policies(transport)

    def replicas(self) -> Iterator[Replica]:
        """The engines: what each serves, and how loaded it is."""
        return self._transport.pages(calls.replicas, page_size(None))

    def drain(self, *, draining: bool = True, deadline_seconds: float | None = None) -> Drain:
        """Refuse new generations; what is under way ends, at the deadline at the latest."""
        return self._transport.send(calls.drain(draining, deadline_seconds))

    def drain_state(self) -> Drain:
        """Whether new generations are refused, and how many are under way."""
        return self._transport.send(calls.drain_state())
