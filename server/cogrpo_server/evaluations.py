"""Evaluations of policy versions for the routes: asked for here, done by the trainer.

What both know lies in the data folder (cogrpo_core/exchange/policy_evaluations.py).
"""

import contextlib
import logging
from pathlib import Path

from pydantic import ValidationError

from cogrpo_client.types import EvaluateRequest, Evaluation
from cogrpo_core.exchange.policy_evaluations import (
    EvaluationBusyError,
    EvaluationRecord,
    Evaluations,
)
from cogrpo_core.exchange.policy_manifest import Json
from cogrpo_core.exchange.training_cycles import Cycles
from cogrpo_core.exchange.training_records import TrainingAwayError
from cogrpo_server.problems import ApiError
from cogrpo_server.training import check_trainer, run_problem, training_errors

logger = logging.getLogger(__name__)


class PolicyEvaluations:
    """The latest evaluation of each version. It waits for the disk: call it in threads.

    Raises `ApiError`.
    """

    def __init__(self, training_dir: Path, *, has_trainer: bool = False) -> None:
        """`has_trainer` is whether a trainer should run."""
        self._evaluations = Evaluations(training_dir)
        self._cycles = Cycles(training_dir)
        self._has_trainer = has_trainer

    def latest(self, version: str, evidence: Json) -> Evaluation | None:
        """What was asked for last, or else the gate's, which is in a version's `evidence`."""
        try:
            record = self._evaluations.get(version)
        except TrainingAwayError as error:  # the version can be shown without it
            logger.warning("%s", error)
            record = None
        if record is not None:
            return _wire(record)
        with contextlib.suppress(ValidationError):
            return Evaluation.model_validate(evidence.get("evaluation"))
        return None

    def request(
        self, version: str, against: str, wanted: EvaluateRequest, *, key: str | None, body: str
    ) -> None:
        """Asks the trainer for one; `key` and `body` are digests."""
        check_trainer(self._cycles, self._has_trainer)
        with training_errors():
            try:
                self._evaluations.request(
                    version,
                    against=against,
                    suite=wanted.suite,
                    prompts=wanted.prompts,
                    key=key,
                    body=body,
                )
            except EvaluationBusyError:
                raise ApiError(
                    409,
                    "evaluation_under_way",
                    "An evaluation of this version has not ended; wait for it or cancel it.",
                ) from None

    def cancel(self, version: str) -> None:
        """Ends a version's evaluation at its next batch; one that has ended stays as it is."""
        with training_errors():
            record = self._evaluations.get(version)
            if record is None:
                raise ApiError(404, "not_found", "No evaluation of this version was asked for.")
            if not record.ended:
                self._evaluations.cancel(version)


def _wire(record: EvaluationRecord) -> Evaluation:
    if record.facts is not None:
        return Evaluation.model_validate(record.facts)
    return Evaluation(
        status=record.status,
        against=record.against,
        suite=record.suite or "",
        started=record.started,
        finished=record.finished,
        prompts=record.prompts or 0,
        error=run_problem(record.code, record.detail, record.version, "The evaluation"),
    )
