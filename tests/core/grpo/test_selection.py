"""What Eq. 8 leaves out: the choice of the kept tokens depends on the model's confidence too.

Two positions of three codes are drawn, and the surer one is kept, as at a re-mask temperature of
zero. All nine draws are enumerated in float64.
"""

import itertools

import torch
from torch import Tensor


def mean_score(logits_2V: Tensor, *, by_confidence: bool) -> Tensor:
    """The expectation [2,V] of the gradient of the kept token's log-probability.

    A likelihood's own is zero, so that a baseline, whatever it knows of the state, costs nothing.
    """
    logits_2V = logits_2V.double().requires_grad_()
    total = torch.zeros_like(logits_2V)
    for tokens in itertools.product(range(3), repeat=2):
        logprob_2V = logits_2V.log_softmax(1)
        own_2 = torch.stack([logprob_2V[at, token] for at, token in enumerate(tokens)])
        kept_2 = torch.full((2,), 0.5).double()
        if by_confidence:
            kept_2 = torch.zeros(2).double().index_fill(0, own_2.argmax(), 1.0)
        (score,) = torch.autograd.grad((kept_2 * own_2).sum(), logits_2V)
        total += own_2.detach().sum().exp() * score
    return total


def test_a_random_choice_leaves_the_scores_mean_at_zero() -> None:
    logits = torch.tensor([[0.3, -0.5, 1.1], [0.9, 0.2, -0.7]])
    assert float(mean_score(logits, by_confidence=False).abs().max()) < 1e-12


def test_a_choice_by_confidence_moves_it_towards_what_is_likely() -> None:
    """So where samples of a group differ in their state, its mean reward is no free baseline: what
    a state is worth times this mean is left over. At the first step all have one state."""
    logits = torch.tensor([[0.3, -0.5, 1.1], [0.9, 0.2, -0.7]])
    mean = mean_score(logits, by_confidence=True)
    assert float(mean.abs().max()) > 0.05
    likeliest = logits.argmax(1)
    assert all(float(mean[at, code]) > 0 for at, code in enumerate(likeliest))
    assert torch.allclose(mean.sum(1), torch.zeros(2).double(), atol=1e-12)
