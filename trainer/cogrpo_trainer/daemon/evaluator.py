"""Evaluations that somebody asked for: a version against another, judged as the gate does.

Nothing is published or promoted. Where the verdict may count, it goes into the journal.
"""

from cogrpo_core.exchange.policy_evaluations import EvaluationRecord
from cogrpo_core.exchange.policy_follower import load_tried
from cogrpo_core.exchange.policy_manifest import Json
from cogrpo_core.exchange.policy_registry import PolicyRegistry, RegistryError
from cogrpo_core.exchange.training_cycles import BASE
from cogrpo_core.jobs import NonFiniteError
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.rewards.composite import Composite
from cogrpo_trainer.daemon.config import WHO, DaemonConfig, Gate
from cogrpo_trainer.daemon.evaluation import Look
from cogrpo_trainer.daemon.verdict import Judged, judge_challenger
from cogrpo_trainer.promotion import PromotionError

_CANNOT = {
    "unknown": "is not in the registry any more",
    "damaged": "is damaged, or of another base model",
    "unavailable": "cannot be read now",
}


class EvaluationError(ValueError):
    """An evaluation that cannot be done, in one line that callers may read."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Evaluator:
    """Tests versions of one base model."""

    def __init__(
        self,
        config: DaemonConfig,
        *,
        base: Checkpoint,
        registry: PolicyRegistry,
        measured: Composite,
    ) -> None:
        """`measured` scores trained and held-out rewards."""
        self._config = config
        self._base = CoGRPOPipeline(base)
        self._registry = registry
        self._measured = measured

    def evaluate(self, record: EvaluationRecord, look: Look = lambda: None) -> Json:
        """What was found, as the wire's `Evaluation` and more; `look` is called between batches.

        Raises `EvaluationError`.
        """
        gate = self._gate(record)
        other, version = self._load(record.against), self._load(record.version)
        try:
            judged = judge_challenger(
                other,
                version,
                self._measured,
                self._config.model_copy(update={"gate": gate}),
                against=record.against,
                look=look,
            )
        except PromotionError as error:
            raise EvaluationError("invalid", str(error)) from None
        facts = judged.facts | {"suite": record.suite or self._config.gate.held_out}
        self._write_down(record, judged, facts)
        return facts

    def _gate(self, record: EvaluationRecord) -> Gate:
        """The gate with the suite and number that were asked for, and no pictures to keep."""
        gate, suites = self._config.gate, self._config.suites
        if record.suite is not None and record.suite not in suites:
            known = ", ".join(sorted(suites)) or "none but the gate's own: leave it out"
            raise EvaluationError("invalid", f"the trainer knows no such suite; it has {known}")
        changes = {
            "held_out": gate.held_out if record.suite is None else suites[record.suite],
            "prompts": record.prompts or gate.prompts,
            "pairs": 0,
        }
        return Gate.model_validate(gate.model_dump() | changes)

    def _load(self, version: str) -> CoGRPOPipeline:
        if version == BASE:
            return self._base
        try:
            return load_tried(self._registry, version, self._base, {})
        except RegistryError as error:
            why = _CANNOT.get(error.code, "cannot be loaded")
            raise EvaluationError(
                error.code, f"version {version} {why}; trainer.log says more"
            ) from error
        except NonFiniteError:
            raise EvaluationError("unusable", f"version {version} makes no picture") from None

    def _write_down(self, record: EvaluationRecord, judged: Judged, facts: Json) -> None:
        """A judgement, where the test was against the champion and the version may still be judged.

        A candidate passes or is rejected; what passed before may pass again, against this champion.
        """
        status = self._registry.get(record.version).status
        if (self._registry.aliases().champion or BASE) != record.against:
            return
        if status == "candidate" or (status == "passed" and judged.passed):
            self._registry.judge(
                record.version,
                "passed" if judged.passed else "rejected",
                who=WHO,
                why="; ".join(judged.reasons)[:1000] or f"passed a test against {record.against}",
                evidence={"evaluation": facts},
            )
