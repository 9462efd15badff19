"""Evaluations of policy versions as files: the service asks for one, the trainer does it.

A version has one record, that of its latest evaluation (training_records.py). So no more can wait
than there are versions.
"""

import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from cogrpo_core.exchange.policy_manifest import is_id
from cogrpo_core.exchange.training_records import (
    ENDED,
    ReusedKeyError,
    RunStatus,
    TrainingRecords,
)

KEPT = 100
"""Versions whose latest evaluation stays."""


class EvaluationBusyError(ValueError):
    """An evaluation of the version has not ended."""


class EvaluationRecord(BaseModel):
    """What is known of a version's latest evaluation. Times are Unix seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    against: str
    """The version that it is compared with, or `BASE`."""
    suite: str | None = None
    """A name that the trainer knows; None is what its gate uses. `prompts` alike: how many."""
    prompts: int | None = None
    status: RunStatus = "queued"
    created_ms: int
    started: int | None = None
    finished: int | None = None
    attempts: int = 0
    """How often it was begun: more than once when the trainer died over it."""
    facts: dict[str, JsonValue] | None = None
    """What was found, once it is completed."""
    code: str | None = None
    """Why it failed or was cancelled: a word, and a sentence in `detail`."""
    detail: str = ""
    key: str | None = None
    """A digest of who asked and the idempotency key; `body` is one of what was asked."""
    body: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing comes after this."""
        return self.status in ENDED


class Evaluations:
    """The evaluations of a data folder, for several processes. Raises `TrainingAwayError`."""

    def __init__(self, training_dir: Path) -> None:
        """`training_dir` is made when something is first written."""
        self._records = TrainingRecords(training_dir / "evaluations", EvaluationRecord, is_id)

    def request(
        self,
        version: str,
        *,
        against: str,
        suite: str | None = None,
        prompts: int | None = None,
        key: str | None = None,
        body: str | None = None,
    ) -> EvaluationRecord:
        """A new evaluation, or the one that the same `key` asked for before.

        It takes the place of the version's former one. Raises `EvaluationBusyError` while that has
        not ended, and `ReusedKeyError` for a `key` that came with another version or `body`.
        """
        with self._records.locked():
            for known in self._records.all() if key is not None else ():
                if known.key == key:
                    if (known.version, known.body) != (version, body):
                        raise ReusedKeyError("the key came with something else before")
                    return known
            former = self.get(version)
            if former is not None and not former.ended:
                raise EvaluationBusyError(f"an evaluation of {version} has not ended")
            record = EvaluationRecord(
                version=version,
                against=against,
                suite=suite,
                prompts=prompts,
                created_ms=time.time_ns() // 1_000_000,
                key=key,
                body=body,
            )
            self._records.go_on(version)  # the former one may have been cancelled
            self.write(record)
            for old in self._records.all()[KEPT:]:
                if old.ended:
                    self._records.remove(old.version)
            return record

    def get(self, version: str) -> EvaluationRecord | None:
        """A version's latest evaluation, or None."""
        return self._records.get(version)

    def next(self) -> EvaluationRecord | None:
        """The one to do: of those that have not ended, the one that was asked for first."""
        left = [record for record in self._records.all() if not record.ended]
        return min(left, key=lambda record: record.created_ms, default=None)

    def write(self, record: EvaluationRecord) -> None:
        """Puts a record in the place of the one before; it is durable when this returns."""
        self._records.write(record.version, record)

    def cancel(self, version: str) -> None:
        """Asks the trainer to end a version's evaluation at its next batch."""
        self._records.cancel(version)

    def is_cancelled(self, version: str) -> bool:
        """Whether somebody asked for its end."""
        return self._records.is_cancelled(version)
