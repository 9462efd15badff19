"""How probable a logged step is under the present weights: its two parts (Eq. 13, 18-20).

The model's part is that of the distribution which was sampled from: guided, and tempered with the
*logged* action. The schedule's part is a Gaussian density. Both recompute what the sampler logged.

Shape letters: M steps, N image tokens, K filled positions of all M steps, R forward passes,
V codes, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cogrpo_core.denoise import guide
from cogrpo_core.grpo.batch import Distinct, Steps
from cogrpo_core.models.schedule_policy import SchedulePolicy
from cogrpo_core.models.transformer import Conditioning, MeissonicTransformer
from cogrpo_core.schedule import GUIDANCE_SCALE, SAMPLE_TEMPERATURE


@dataclass(frozen=True)
class TokenLikelihood:
    """The model's part: log softmax(l / tau_s) at the positions that each step filled."""

    logprob_K: Tensor
    """Of the token that was kept; keeps the gradient."""
    logged_K: Tensor
    """What the sampler wrote down for the same token."""
    step_K: Tensor
    """The step, an index into the M steps, that each position belongs to."""
    states_KD: Tensor
    """The guided states before the head, in the model's type; keeps the gradient."""
    head: Callable[[Tensor], Tensor]
    """The model's last layer, states to logits."""
    temperature_K: Tensor
    features_MDhw: Tensor | None
    """The conditional pass's features, which the scheduling policy reads; without gradient."""

    @property
    def logits_KV(self) -> Tensor:
        """Guided and tempered, float32, for a KL; keeps the gradient. Made when it is asked for."""
        return self.head(self.states_KD).float() / self.temperature_K[:, None]

    def per_step(self, value_K: Tensor, steps: int) -> Tensor:
        """The sum of a value over each step's positions, [M]."""
        return value_K.new_zeros(steps).index_add(0, self.step_K, value_K)


def token_likelihood(
    transformer: MeissonicTransformer,
    steps: Steps,
    conditional: Conditioning,
    unconditional: Conditioning,
    *,
    features: bool = False,
    distinct: Distinct | None = None,
) -> TokenLikelihood:
    """log pi_model of M steps (Eq. 8 and 19), position by position.

    The conditionings have a row a step. One forward pass of 2M rows, or of those of `distinct`;
    only the filled positions go through the last layers, and through the head chunk by chunk: their
    logits never exist as a whole. With `features`, what the scheduling policy reads is given too.
    """
    num_tokens = steps.filled_MN.shape[1]
    position_K = steps.filled_MN.flatten().nonzero()[:, 0]
    step_K = position_K // num_tokens
    position_2K = torch.cat([position_K, position_K + steps.filled_MN.numel()])
    state_RN, remaining_R = steps.state_MN.repeat(2, 1), steps.remaining_M.repeat(2)
    conditioning = Conditioning.cat([conditional, unconditional])
    if distinct is not None:
        row_R = distinct.row_R
        state_RN, remaining_R = state_RN[row_R], remaining_R[row_R]
        conditioning = conditioning.select(row_R)
        place_2K = distinct.place_S[position_2K // num_tokens]
        position_2K = place_2K * num_tokens + position_2K % num_tokens
    inputs = state_RN.unflatten(1, steps.grid), remaining_R, conditioning
    # The first M rows are the conditional pass, but any of the distinct ones may be part of it.
    conditional_rows = len(steps) if distinct is None else len(state_RN)
    hidden_2KD, seen_RDhw = transformer.hidden_at(
        *inputs, position_2K, featured=conditional_rows if features else 0
    )
    features_MDhw = None
    if features:
        seen_RDhw = seen_RDhw.detach()
        features_MDhw = seen_RDhw if distinct is None else seen_RDhw[distinct.place_S[: len(steps)]]
    actions_K4 = steps.actions_M4[step_K]
    conditional_KD, unconditional_KD = hidden_2KD.chunk(2)
    guided_KD = guide(conditional_KD, unconditional_KD, actions_K4[:, GUIDANCE_SCALE])
    states_KD = guided_KD.to(hidden_2KD.dtype)
    temperature_K = actions_K4[:, SAMPLE_TEMPERATURE]
    token_K = steps.tokens_MN.flatten()[position_K]
    return TokenLikelihood(
        logprob_K=transformer.token_logprob(states_KD, temperature_K, token_K).float(),
        logged_K=steps.token_logprob_MN.flatten()[position_K],
        step_K=step_K,
        states_KD=states_KD,
        head=transformer.head,
        temperature_K=temperature_K,
        features_MDhw=features_MDhw,
    )


@torch.no_grad()
def policy_features(
    transformer: MeissonicTransformer,
    steps: Steps,
    conditional: Conditioning,
    distinct: Distinct | None = None,
) -> Tensor:
    """What the scheduling policy reads at M steps: the conditional pass's features [M,D,h,w]."""
    state_MN, remaining_M = steps.state_MN, steps.remaining_M
    if distinct is not None:
        row_R = distinct.row_R
        state_MN, remaining_M = state_MN[row_R], remaining_M[row_R]
        conditional = conditional.select(row_R)
    states = transformer.states(state_MN.unflatten(1, steps.grid), remaining_M, conditional)
    return states.features if distinct is None else states.features[distinct.place_S]


@dataclass(frozen=True)
class ActionLikelihood:
    """The schedule's part: the Gaussian's log-density of the logged action."""

    logprob_M: Tensor
    """Keeps the gradient to the scheduling policy."""
    mean_M4: Tensor


def action_likelihood(
    policy: SchedulePolicy, steps: Steps, features_MDhw: Tensor
) -> ActionLikelihood:
    """log pi_schedule of M steps (Eq. 14 and 20), over the components that each step used."""
    mean_M4 = policy(features_MDhw, steps.time_M).float()
    logprob_M = policy.log_prob(steps.raw_actions_M4, mean_M4, steps.used_M4)
    return ActionLikelihood(logprob_M, mean_M4)
