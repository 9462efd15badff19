"""The clipped surrogate of Co-GRPO (Eq. 15 and 21), its model ratio in three forms, and exact KLs.

Every function gives one value a step; the learner takes the mean over steps and group.

Shape letters: M steps, K filled positions of all M steps, V codes.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cogrpo_core.grpo.likelihood import TokenLikelihood

RatioForm: TypeAlias = Literal["product", "geometric_mean", "token"]
"""How a step's token ratios become the model's ratio; the paper's is the product (Eq. 19)."""

MAX_LOG_RATIO = 20.0
"""Beyond it the exponential is cut: such a ratio is clipped in any case, and must not overflow."""


@dataclass(frozen=True)
class Surrogate:
    """What is maximised, step by step, and what there is to watch."""

    value_M: Tensor
    """min(r A, clip(r, 1 - eps, 1 + eps) A); keeps the gradient."""
    ratio_M: Tensor
    """The step's ratio, without gradient (the mean of its tokens' in the `token` form)."""
    clipped_M: Tensor
    """The share of the step's ratios that the clip cut off from the gradient."""


def surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """min(r A, clip(r) A) elementwise (Eq. 9), r itself, and where the clip cuts the gradient."""
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    limited = ratio.clamp(1 - clip, 1 + clip)
    value = torch.minimum(ratio * advantage, limited * advantage)
    cut = limited * advantage < ratio * advantage
    return value, ratio.detach(), cut


def schedule_surrogate(
    logprob_M: Tensor, logged_M: Tensor, advantage_M: Tensor, clip: float
) -> Surrogate:
    """The surrogate of the schedule's phase (Eq. 20 and the second case of Eq. 21)."""
    return Surrogate(*_floats(*surrogate(logprob_M - logged_M, advantage_M, clip)))


def model_surrogate(
    tokens: TokenLikelihood,
    advantage_M: Tensor,
    clip: float,
    form: RatioForm,
    other_log_ratio_M: Tensor | None = None,
) -> Surrogate:
    """The surrogate of the model's phase (Eq. 19 and the first case of Eq. 21).

    `product` multiplies the ratios of all tokens that a step filled; `geometric_mean` takes the
    root of their number; `token` clips each token's ratio and averages over the step. With
    `other_log_ratio_M`, the schedule's part, the ratio is the joint policy's (Eq. 16 and 17).
    """
    steps = len(advantage_M)
    log_ratio_K = tokens.logprob_K - tokens.logged_K
    count_M = tokens.per_step(torch.ones_like(log_ratio_K), steps).clamp(min=1)
    if form == "token":
        if other_log_ratio_M is not None:
            log_ratio_K = log_ratio_K + other_log_ratio_M[tokens.step_K]
        value_K, ratio_K, cut_K = surrogate(log_ratio_K, advantage_M[tokens.step_K], clip)
        return Surrogate(
            *(tokens.per_step(x.float(), steps) / count_M for x in (value_K, ratio_K, cut_K))
        )
    log_ratio_M = tokens.per_step(log_ratio_K, steps)
    if form == "geometric_mean":
        log_ratio_M = log_ratio_M / count_M
    if other_log_ratio_M is not None:
        log_ratio_M = log_ratio_M + other_log_ratio_M
    return Surrogate(*_floats(*surrogate(log_ratio_M, advantage_M, clip)))


def _floats(value: Tensor, ratio: Tensor, cut: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return value, ratio, cut.float()


def token_kl(tokens: TokenLikelihood, reference: TokenLikelihood, steps: int) -> Tensor:
    """KL(pi_model || pi_ref) of each step [M]: exact over codes, summed over filled positions."""
    logprob_KV = tokens.logits_KV.log_softmax(dim=1)
    reference_KV = reference.logits_KV.log_softmax(dim=1)
    kl_K = (logprob_KV.exp() * (logprob_KV - reference_KV)).sum(dim=1)
    return tokens.per_step(kl_K, steps)


def action_kl(mean_M4: Tensor, reference_M4: Tensor, used_M4: Tensor, sigma: float) -> Tensor:
    """KL between Gaussians of one sigma [M], over the components that each step used."""
    square_M4 = (mean_M4 - reference_M4).square() / (2 * sigma**2)
    return torch.where(used_M4, square_M4, 0.0).sum(dim=1)
