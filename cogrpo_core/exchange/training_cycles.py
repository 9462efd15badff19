"""Training cycles as files: the service asks for one, the trainer does it and says how far it is.

Whoever asks for a cycle creates its record; after that the trainer alone writes it
(training_records.py).
"""

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, JsonValue

from cogrpo_core.exchange.training_records import (
    ENDED,
    ReusedKeyError,
    RunStatus,
    TrainingRecords,
    away,
    flocked,
    make_private,
)

KEPT = 500
"""Records of ended cycles that stay."""
BASE = "base"
"""The name of the policy that no version is: the base model."""

CyclePhase: TypeAlias = Literal["rollout", "model", "schedule", "evaluation"]
Trigger: TypeAlias = Literal["request", "trajectories", "interval"]

_ID = re.compile(r"cycle-[0-9]{8}T[0-9]{9}-[0-9a-f]{8}")
_LOCK_SECONDS = 5.0


class CycleBusyError(ValueError):
    """Another cycle has not ended; `running` is its id."""

    def __init__(self, running: str) -> None:
        super().__init__(f"{running} has not ended")
        self.running = running


class CycleRecord(BaseModel):
    """What is known of a cycle. Times are Unix seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    trigger: Trigger
    status: RunStatus = "queued"
    phase: CyclePhase | None = None
    created: int
    started: int | None = None
    finished: int | None = None
    iteration: int = 0
    iterations: int = 0
    attempts: int = 0
    """How often an error threw it back to its last state."""
    model_iterations: int | None = None
    """N_m as it was asked for; None is the trainer's setting. `schedule_iterations` alike: N_s."""
    schedule_iterations: int | None = None
    parent: str = BASE
    """The policy version that it began from."""
    policy_version: str | None = None
    """The challenger that it made."""
    promoted: bool = False
    evaluation: dict[str, JsonValue] | None = None
    counts: dict[str, int] = {}
    """What became of the trajectories that it read."""
    code: str | None = None
    """Why it failed or was cancelled: a word, and a sentence in `detail`."""
    detail: str = ""
    reason: str = ""
    """Why somebody asked for it."""
    key: str | None = None
    """A digest of who asked and the idempotency key; `body` is one of what was asked."""
    body: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing comes after this."""
        return self.status in ENDED


class Cycles:
    """The cycles of a data folder, for several processes. Raises `TrainingAwayError`."""

    def __init__(self, training_dir: Path) -> None:
        """`training_dir` is made when something is first written."""
        self._training_dir = training_dir
        self._records = TrainingRecords(
            training_dir / "cycles", CycleRecord, lambda name: _ID.fullmatch(name) is not None
        )

    def request(
        self,
        trigger: Trigger,
        *,
        model_iterations: int | None = None,
        schedule_iterations: int | None = None,
        reason: str = "",
        key: str | None = None,
        body: str | None = None,
    ) -> CycleRecord:
        """A new cycle, or the one that the same `key` asked for before.

        Raises `CycleBusyError` while another has not ended, and `ReusedKeyError` for a `key` that
        came with another `body`.
        """
        with self._records.locked():
            for known in self.records() if key is not None else ():
                if known.key == key:
                    if known.body != body:
                        raise ReusedKeyError("the key came with another body before")
                    return known
            if (running := self.unfinished()) is not None:
                raise CycleBusyError(running.id)
            record = CycleRecord(
                id=_new_id(),
                trigger=trigger,
                created=int(time.time()),
                model_iterations=model_iterations,
                schedule_iterations=schedule_iterations,
                reason=reason,
                key=key,
                body=body,
            )
            self.write(record)
            for old in self._records.names()[KEPT:]:
                self._records.remove(old)
            return record

    def records(self) -> list[CycleRecord]:
        """All cycles, newest first."""
        return self._records.all()

    def get(self, cycle_id: str) -> CycleRecord | None:
        """One cycle, or None for an id that is unknown or of no form of an id."""
        return self._records.get(cycle_id)

    def unfinished(self) -> CycleRecord | None:
        """The one that waits or runs: the newest, or none."""
        newest = next(map(self.get, self._records.names()), None)
        return None if newest is None or newest.ended else newest

    def write(self, record: CycleRecord) -> None:
        """Puts a record in the place of the one before; it is durable when this returns."""
        self._records.write(record.id, record)

    def cancel(self, cycle_id: str) -> None:
        """Asks the trainer to end a cycle at its next iteration."""
        self._records.cancel(cycle_id)

    def is_cancelled(self, cycle_id: str) -> bool:
        """Whether somebody asked for its end."""
        return self._records.is_cancelled(cycle_id)

    @contextlib.contextmanager
    def attending(self) -> Iterator[bool]:
        """Holds the place of the folder's one trainer; gives False where another has it."""
        with away():
            make_private(self._training_dir)
            descriptor = os.open(self._training_dir / "trainer.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield flocked(descriptor, fcntl.LOCK_EX, _LOCK_SECONDS)
        finally:
            os.close(descriptor)

    def is_attended(self) -> bool:
        """Whether a trainer runs."""
        try:
            descriptor = os.open(self._training_dir / "trainer.lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            return not flocked(descriptor, fcntl.LOCK_SH, 0.0)
        finally:
            os.close(descriptor)


def _new_id() -> str:
    """Ids sort by age."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")[:-3]
    return f"cycle-{stamp}-{secrets.token_hex(4)}"
