"""The likelihood of kept tokens without the mean that the choice of them gives it.

The sampler keeps what it is surest of, so the score of Eq. 8's likelihood has a mean that is not
zero: "be surer". A baseline of the group cancels it where all samples have one state, and not
after. Given the noise of the choice, a token was kept if its confidence beat a bound; among the
codes that would have beaten it too the model drew freely, and the score of *that* likelihood has
mean zero in every state. Comparing both tells how much of a gradient the choice makes.

Shape letters: B trajectories, M steps, N image tokens, K filled positions, V codes.
"""

import torch
from torch import Tensor

from cogrpo_core.grpo.batch import Steps
from cogrpo_core.grpo.likelihood import TokenLikelihood
from cogrpo_core.kernels.ops import step_noise
from cogrpo_core.schedule import REMASK_TEMPERATURE, SAMPLE_TEMPERATURE


def logprob_among_kept(tokens: TokenLikelihood, steps: Steps, seed_B: Tensor) -> Tensor:
    """log p of each kept token [K] among the codes that the step would have kept in its place.

    Keeps the gradient. The bound is the lowest noisy confidence that was kept: whoever is above it
    would be there with any code above it. The lowest itself has no part, and a constant 0. The last
    step keeps everything, and there this is the plain likelihood.
    """
    position_K = steps.filled_MN.flatten().nonzero()[:, 0]
    token_K1 = steps.tokens_MN.flatten()[position_K][:, None]
    logprob_KV = tokens.logits_KV.log_softmax(dim=1)
    with torch.no_grad():
        gumbel_MN = step_noise(seed_B[steps.sample_M], steps.step_M, steps.filled_MN.shape[1])[1]
        temperature_K, tempered_K = (
            steps.actions_M4[tokens.step_K, column]
            for column in (REMASK_TEMPERATURE, SAMPLE_TEMPERATURE)
        )
        confidence_KV = (tokens.logits_KV * tempered_K[:, None]).log_softmax(dim=1)
        noisy_KV = confidence_KV + (temperature_K * gumbel_MN.flatten()[position_K])[:, None]
        own_K = noisy_KV.gather(1, token_K1)[:, 0]
        bound_M = own_K.new_full((len(steps),), torch.inf).scatter_reduce(
            0, tokens.step_K, own_K, "amin"
        )
        bound_M = bound_M.masked_fill(steps.remaining_M == 0, -torch.inf)
        bound_K = bound_M[tokens.step_K]
        other_KV = noisy_KV <= bound_K[:, None]
        lowest_K = own_K == bound_K
        other_KV[lowest_K] = False
    total_K = logprob_KV.masked_fill(other_KV, -torch.inf).logsumexp(dim=1)
    logprob_K = logprob_KV.gather(1, token_K1)[:, 0] - total_K
    return torch.where(lowest_K, 0.0, logprob_K)
