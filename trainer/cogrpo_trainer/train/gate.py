"""The ratio-equals-one gate: before an update, the log must be what the learner computes.

Sampler and learner run other code over the same weights. Wherever they drift apart (guidance, a
temperature, the time, stale weights) the ratio is not 1 before the first update, and training
would follow the difference. So it stops here, and says where.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cogrpo_core.grpo.batch import Steps, TrajectoryBatch, all_steps, pick_steps
from cogrpo_core.grpo.likelihood import action_likelihood, token_likelihood
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.schedule import GUIDANCE_SCALE, SAMPLE_TEMPERATURE
from cogrpo_trainer.train.conditions import Conditions


class RatioGateError(RuntimeError):
    """The logged and the recomputed log-probability differ: training must not go on."""


@dataclass(frozen=True)
class GateReport:
    """The largest gaps that were found, in nats."""

    token_gap: float
    action_gap: float


@torch.no_grad()
def check_ratio(
    checkpoint: Checkpoint,
    batch: TrajectoryBatch,
    conditions: Conditions,
    *,
    floor: float,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
) -> GateReport:
    """Recomputes both parts of `steps` random steps of a fresh rollout.

    Raises `RatioGateError`, which names the part, the step and the gap, if one exceeds `floor` or
    is not finite. Guidance and temperature enlarge what logits differ by from rounding, and the
    floor of a step's tokens with it. The checkpoint's scheduling policy, if it has one, took all
    actions.
    """
    transformer, policy = checkpoint.transformer, checkpoint.schedule_policy
    sample_S, step_S = all_steps(batch)
    chosen = torch.randperm(len(sample_S), generator=generator)[:steps].to(sample_S.device)
    worst = {"model": 0.0, "schedule": 0.0}
    for index in chosen.split(batch_size):
        picked = pick_steps(batch, sample_S[index], step_S[index], transformer.config.mask_token_id)
        rows = conditions.rows(transformer, picked.sample_M)
        tokens = token_likelihood(transformer, picked, *rows, features=policy is not None)
        gap_K = (tokens.logprob_K - tokens.logged_K).abs()
        gap_M = gap_K.new_zeros(len(picked)).scatter_reduce(0, tokens.step_K, gap_K, "amax")
        floor_M = floor * _enlargement(picked)
        worst["model"] = max(worst["model"], _gate("model", gap_M, picked.step_M, floor_M))
        if policy is not None and tokens.features_MDhw is not None:
            actions = action_likelihood(policy, picked, tokens.features_MDhw)
            gap_M = (actions.logprob_M - picked.action_logprob_M).abs()
            floor_M = torch.full_like(gap_M, floor)
            worst["schedule"] = max(
                worst["schedule"], _gate("schedule", gap_M, picked.step_M, floor_M)
            )
    return GateReport(worst["model"], worst["schedule"])


def _enlargement(steps: Steps) -> Tensor:
    """How many times a difference of logits grows [M], at least once: (|s| + |1 - s|) / tau_s."""
    scale_M = steps.actions_M4[:, GUIDANCE_SCALE]
    temperature_M = steps.actions_M4[:, SAMPLE_TEMPERATURE]
    return ((scale_M.abs() + (1 - scale_M).abs()) / temperature_M).clamp(min=1)


def _gate(part: str, gap_M: Tensor, step_M: Tensor, floor_M: Tensor) -> float:
    bad_M = ~(gap_M <= floor_M)  # a NaN is bad too
    if bad_M.any():
        first = int(bad_M.nonzero()[0])
        raise RatioGateError(
            f"the ratio is not 1 before the first update: at step {int(step_M[first])} the "
            f"{part}'s log-probability differs from the log by {float(gap_M[first]):.3g}, more "
            f"than the gate's {float(floor_M[first]):.3g}; sampler and learner disagree, so "
            "training stops"
        )
    return float(gap_M.max()) if len(gap_M) else 0.0
