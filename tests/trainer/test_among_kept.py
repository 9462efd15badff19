"""The likelihood among kept codes: its score has mean zero where that of the kept tokens has not.

Shape letters: B samples, N image tokens, V codes, K filled positions.
"""

import pytest
import torch
from torch import Tensor

from cogrpo_core.denoise import denoise_step, start_samples
from cogrpo_core.grpo.batch import Steps, TrajectoryBatch, pick_steps
from cogrpo_core.grpo.likelihood import TokenLikelihood
from cogrpo_trainer.benchmarks.among_kept import logprob_among_kept

N, V, B, MASK = 6, 5, 6000, 5
ACTIONS = torch.tensor([[0.5, 0.8, 0.7, 1.0], [0.0, 1.3, 0.0, 1.0]])
SEEDS = list(range(B))


def logits(step: int) -> Tensor:
    return 1.5 * torch.randn(N, V, generator=torch.Generator().manual_seed(step))


@pytest.fixture(scope="module")
def batch() -> TrajectoryBatch:
    """Both steps of B samples whose logits are the same whatever is known."""
    samples = start_samples(SEEDS, [ACTIONS] * B, N, MASK)
    for step in range(2):
        masked_BN = samples.tokens_BN == MASK
        rows_MV = logits(step).expand(B, N, V)[masked_BN]
        samples = denoise_step(samples, rows_MV, ACTIONS[step].expand(B, 4), MASK)
    assert not samples.active_B.any()
    return TrajectoryBatch(
        tokens_BN=samples.tokens_BN,
        fill_step_BN=samples.fill_step_BN,
        token_logprob_BN=samples.token_logprob_BN,
        actions_BT4=ACTIONS.repeat(B, 1, 1),
        raw_actions_BT4=torch.zeros(B, 2, 4),
        action_logprob_BT=torch.zeros(B, 2),
        weight_BT=torch.ones(B, 2),
        num_steps_B=torch.full((B,), 2),
        grid=(1, N),
    )


def likelihood(steps: Steps, logits_NV: Tensor) -> TokenLikelihood:
    """The plain one of steps with these untempered logits in every state."""
    step_K, at_K = steps.filled_MN.nonzero(as_tuple=True)
    temperature_K = steps.actions_M4[step_K, 1]
    token_K = steps.tokens_MN[steps.filled_MN]
    rows_KV = logits_NV[at_K] / temperature_K[:, None]
    return TokenLikelihood(
        logprob_K=rows_KV.log_softmax(1).gather(1, token_K[:, None])[:, 0],
        logged_K=steps.token_logprob_MN[steps.filled_MN],
        step_K=step_K,
        states_KD=logits_NV[at_K],
        head=lambda states: states,
        temperature_K=temperature_K,
        features_MDhw=None,
    )


def scores(batch: TrajectoryBatch, step: int) -> tuple[Tensor, Tensor]:
    """Gradients of both log-probabilities of each sample's step with respect to the logits
    [B,N,V]: of what was kept, and among kept codes."""
    rows_BNV = logits(step).repeat(B, 1, 1).requires_grad_()
    steps = pick_steps(batch, torch.arange(B), torch.full((B,), step), MASK)
    flat = steps.filled_MN.flatten().nonzero()[:, 0]
    tokens = likelihood(steps, logits(step))
    states_KV = rows_BNV.flatten(0, 1)[flat]
    tokens = TokenLikelihood(
        **{**vars(tokens), "states_KD": states_KV, "head": lambda states: states}
    )
    plain_K = tokens.logits_KV.log_softmax(1).gather(1, steps.tokens_MN.flatten()[flat][:, None])
    among_K = logprob_among_kept(tokens, steps, torch.tensor(SEEDS))
    assert (among_K >= plain_K[:, 0] - 1e-5).all()
    assert torch.allclose(plain_K[:, 0], tokens.logged_K, atol=1e-5)
    plain, among = (
        torch.autograd.grad(value.sum(), rows_BNV, retain_graph=True)[0]
        for value in (plain_K, among_K)
    )
    return plain, among


def largest_z(gradient_BNV: Tensor) -> float:
    """The mean in its standard errors, at its largest; what B samples may never draw has none."""
    error = (gradient_BNV.std(0) / B**0.5).clamp(min=1e-3)
    return float((gradient_BNV.mean(0).abs() / error).max())


def test_the_choice_gives_the_kept_tokens_score_a_mean_and_this_takes_it_out(batch) -> None:
    plain, among = scores(batch, 0)
    assert largest_z(plain) > 15
    assert float(among.abs().mean()) > 0.1 * float(plain.abs().mean())  # there is something left
    assert largest_z(among) < 4.5


def test_the_last_step_keeps_everything_and_has_no_such_mean(batch) -> None:
    plain, among = scores(batch, 1)
    assert torch.allclose(plain, among, atol=1e-6)
    assert largest_z(plain) < 4.5
