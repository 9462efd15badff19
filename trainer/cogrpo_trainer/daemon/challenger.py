"""From a trained state to a judged version: evaluate, publish, judge, promote.

Every step can be repeated: a cycle that was killed in between finds what is there and goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cogrpo_core.exchange.policy_journal import Move
from cogrpo_core.exchange.policy_registry import PolicyRegistry, PolicyVersion, RegistryError
from cogrpo_core.exchange.policy_weights import (
    Change,
    FullModel,
    ScheduleOnly,
    load_version,
    publish,
)
from cogrpo_core.exchange.training_cycles import BASE
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_trainer.daemon.config import WHO
from cogrpo_trainer.daemon.verdict import Judged
from cogrpo_trainer.tensors import whole
from cogrpo_trainer.train.lora import merged_weights
from cogrpo_trainer.train.run import Trainer


@dataclass(frozen=True)
class Outcome:
    """What became of a challenger."""

    version: str
    promoted: bool
    why: str


def present(trainer: Trainer) -> Checkpoint:
    """The averaged weights as a checkpoint of its own, as they will be published."""
    checkpoint = trainer.checkpoint
    with trainer.trained.swapped(trainer.average.values):
        weights = {k: v.clone() for k, v in whole(merged_weights(checkpoint.transformer)).items()}
        policy = trainer.trained.policy
        copy = type(policy)(policy.config)
        copy.load_state_dict(policy.state_dict())
    transformer = type(checkpoint.transformer)(checkpoint.transformer.config)
    transformer.load_state_dict(weights)
    return replace(
        checkpoint,
        transformer=transformer.to(trainer.device).eval(),
        schedule_policy=copy.to(trainer.device).eval(),
    )


def published(registry: PolicyRegistry, cycle_id: str) -> PolicyVersion | None:
    """The version that a cycle made, if it came so far."""
    for version in reversed(registry.versions()):
        found = registry.get(version)
        if found.manifest.training.get("cycle") == cycle_id:
            return found
    return None


def publish_challenger(
    registry: PolicyRegistry,
    base: Checkpoint,
    made: Checkpoint,
    judged: Judged,
    *,
    cycle_id: str,
    parent: str | None,
    schedule_alone: bool,
    training: dict[str, Any],
) -> PolicyVersion:
    """Publishes what was judged, with its evidence: a schedule alone where the model stayed.

    Raises `RegistryError`, also when what lies in the registry does not make the judged pictures.
    """
    policy = made.schedule_policy
    assert policy is not None
    change: Change = ScheduleOnly(policy) if schedule_alone else FullModel.of(made)
    version = publish(
        registry,
        base,
        change,
        parent=parent,
        on=parent if schedule_alone else None,
        training={"cycle": cycle_id, **training},
        evidence={"evaluation": judged.facts, "pairs": [*judged.pairs]},
    )
    _check_same(load_version(registry, version, base), made, version)
    return registry.get(version)


def settle_challenger(
    registry: PolicyRegistry,
    version: PolicyVersion,
    *,
    parent: str | None,
    tell: Callable[[Move], object] = lambda _: None,
) -> Outcome:
    """Writes the judgement down, and promotes what passed, if `parent` still is the champion.

    `tell` hears of the promotion.
    """
    evidence: dict[str, Any] = version.manifest.evidence
    facts = evidence["evaluation"]
    reasons, passed = "; ".join(facts["reasons"])[:1000], bool(facts["passed"])
    if version.status == "candidate":
        registry.judge(
            version.id,
            "passed" if passed else "rejected",
            who=WHO,
            why=reasons or "the gate passed it",
            evidence={"evaluation": facts},
        )
    if not passed:
        return Outcome(version.id, False, reasons)
    if registry.aliases().champion == version.id:
        return Outcome(version.id, True, "")
    try:
        move = registry.move(
            "champion",
            version.id,
            expected=parent,
            who=WHO,
            why=f"better than {parent or BASE} at the gate",
            evidence={"effect": facts["effect"], "interval": facts["interval"]},
        )
    except RegistryError as error:
        if error.code != "conflict":
            raise
        return Outcome(version.id, False, f"not promoted: {error}"[:1000])
    tell(move)
    return Outcome(version.id, True, "")


def _check_same(loaded: Checkpoint, made: Checkpoint, version: str) -> None:
    tokens = [
        CoGRPOPipeline(one)("a", seed=0, num_inference_steps=2, output_type="tokens")
        .trajectories[0]
        .tokens.tolist()
        for one in (loaded, made)
    ]
    if tokens[0] != tokens[1]:
        raise RegistryError(
            "damaged", f"version {version} does not make the pictures it was judged by"
        )
