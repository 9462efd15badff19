"""The objective against a float64 brute force that enumerates every trajectory of a tiny MDP.

3 tokens of 2 codes, 2 steps: the first keeps two of three positions, drawn uniformly (an infinite
re-mask temperature), the second fills the last. 3 kept sets x 2^3 tokens are all 24 trajectories.
The model is a table of logits by state, with and without condition.
"""

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from cogrpo_core.grpo.batch import Steps, TrajectoryBatch, all_steps, pick_steps
from cogrpo_core.grpo.likelihood import TokenLikelihood, token_likelihood
from cogrpo_core.grpo.objective import (
    RatioForm,
    action_kl,
    model_surrogate,
    schedule_surrogate,
    surrogate,
    token_kl,
)
from cogrpo_core.kernels.ops import token_logprob
from cogrpo_core.models.schedule_policy import SchedulePolicy, SchedulePolicyConfig
from cogrpo_core.models.transformer import Conditioning, States

TOKENS, CODES, STEPS, MASK = 3, 2, 2, 2
KEPT_FIRST = list(itertools.combinations(range(TOKENS), 2))
TRAJECTORIES = list(itertools.product(KEPT_FIRST, itertools.product(range(CODES), repeat=TOKENS)))
ACTIONS = torch.tensor([[0.4, 0.8, 100.0, 2.5], [0.0, 1.3, 0.0, 1.7]])
FORMS: tuple[RatioForm, ...] = ("product", "geometric_mean", "token")


class TableModel:
    """Logits by (condition, state, position); the head is the identity."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.config = SimpleNamespace(mask_token_id=MASK)

    def states(self, token_ids: Tensor, _time: Tensor, conditioning: Conditioning) -> States:
        state = (token_ids.flatten(1) * torch.tensor([9, 3, 1])).sum(1)
        hidden = self.table[conditioning.pooled[:, 0].long(), state]
        return States(hidden=hidden, features=hidden.detach())

    def hidden_at(
        self,
        token_ids: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        positions: Tensor,
        featured: int = 0,
    ) -> tuple[Tensor, Tensor]:
        states = self.states(token_ids, time, conditioning)
        return states.hidden.flatten(0, 1)[positions], states.features[:featured]

    def head(self, hidden: Tensor) -> Tensor:
        return hidden

    def token_logprob(self, hidden: Tensor, temperature: Tensor, token: Tensor) -> Tensor:
        return token_logprob(hidden, temperature, token)


def table(seed: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3**TOKENS, TOKENS, CODES)
    return spread * torch.randn(shape, generator=generator, dtype=torch.float64)


def reward(tokens: tuple[int, ...]) -> float:
    return float(np.sin(1 + 3 * tokens[0] + 5 * tokens[1] + 9 * tokens[2]) + tokens[0] * tokens[2])


def logprobs(
    table_64: Tensor, kept: tuple[int, ...], tokens: tuple[int, ...]
) -> list[list[Tensor]]:
    """log softmax((u + s (c - u)) / tau_s) of the tokens that each step keeps, in plain loops."""
    state = [MASK] * TOKENS
    result = []
    for step, filled in enumerate((kept, tuple(set(range(TOKENS)) - set(kept)))):
        index = state[0] * 9 + state[1] * 3 + state[2]
        tau, scale = ACTIONS[step, 1].double(), ACTIONS[step, 3].double()
        row = []
        for position in filled:
            conditional, unconditional = table_64[0, index, position], table_64[1, index, position]
            logits = (unconditional + scale * (conditional - unconditional)) / tau
            row.append(torch.log_softmax(logits, 0)[tokens[position]])
        result.append(row)
        for position in filled:
            state[position] = tokens[position]
    return result


def probability(table_64: Tensor, kept: tuple[int, ...], tokens: tuple[int, ...]) -> Tensor:
    parts = [value for row in logprobs(table_64, kept, tokens) for value in row]
    return torch.stack(parts).sum().exp() / len(KEPT_FIRST)


@dataclass
class Enumerated:
    """All trajectories as the library sees them, logged under `old`."""

    batch: TrajectoryBatch
    steps: Steps
    conditional: Conditioning
    unconditional: Conditioning

    def likelihood(self, weights: Tensor) -> TokenLikelihood:
        model: Any = TableModel(weights)
        return token_likelihood(model, self.steps, self.conditional, self.unconditional)


def enumerate_all(old: Tensor) -> Enumerated:
    tokens, fill, logged = [], [], []
    for kept, chosen in TRAJECTORIES:
        rows = logprobs(old, kept, chosen)
        at = {p: (0, value) for p, value in zip(kept, rows[0], strict=True)}
        (last,) = set(range(TOKENS)) - set(kept)
        at[last] = (1, rows[1][0])
        tokens.append(chosen)
        fill.append([at[p][0] for p in range(TOKENS)])
        logged.append([float(at[p][1]) for p in range(TOKENS)])
    count = len(TRAJECTORIES)
    batch = TrajectoryBatch(
        tokens_BN=torch.tensor(tokens),
        fill_step_BN=torch.tensor(fill),
        token_logprob_BN=torch.tensor(logged),
        actions_BT4=ACTIONS.repeat(count, 1, 1),
        raw_actions_BT4=torch.zeros(count, STEPS, 4),
        action_logprob_BT=torch.zeros(count, STEPS),
        weight_BT=torch.ones(count, STEPS),
        num_steps_B=torch.full((count,), STEPS),
        grid=(1, TOKENS),
    )
    steps = pick_steps(batch, *all_steps(batch), MASK)
    flag = torch.zeros(len(steps), 1)
    text = torch.zeros(len(steps), 1, 1)
    return Enumerated(batch, steps, Conditioning(text, flag), Conditioning(text, flag + 1))


REWARDS = torch.tensor([reward(tokens) for _, tokens in TRAJECTORIES])


def test_the_enumeration_is_a_distribution() -> None:
    total = sum(float(probability(table(0), *each)) for each in TRAJECTORIES)
    assert total == pytest.approx(1.0, abs=1e-12)


def test_policy_gradient_is_unbiased() -> None:
    """Over all trajectories, the loss's gradient at ratio 1 is that of the expected reward."""
    truth = table(0).requires_grad_()
    expected = torch.stack([probability(truth, *each) * reward(each[1]) for each in TRAJECTORIES])
    (gradient,) = torch.autograd.grad(expected.sum(), truth)

    old = table(0)
    world = enumerate_all(old)
    weights = old.float().requires_grad_()
    advantage_B = REWARDS - 0.37  # any baseline will do
    found = model_surrogate(
        world.likelihood(weights), advantage_B[world.steps.sample_M], clip=0.2, form="product"
    )
    likely_B = torch.stack([probability(old, *each) for each in TRAJECTORIES]).float()
    (likely_B[world.steps.sample_M] * found.value_M).sum().backward()
    assert weights.grad is not None
    assert float(gradient.abs().max()) > 0.01
    assert torch.allclose(weights.grad.double(), gradient, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clip", [0.05, 0.3])
def test_gradient_is_that_of_a_float64_brute_force(form: RatioForm, clip: float) -> None:
    old, new = table(1), table(1) + 0.15 * table(2)
    exact = new.clone().requires_grad_()
    values = []
    for (kept, tokens), advantage in zip(TRAJECTORIES, REWARDS.double(), strict=True):
        now, before = logprobs(exact, kept, tokens), logprobs(old, kept, tokens)
        for row, row_before in zip(now, before, strict=True):
            gaps = [a - float(np.float32(b)) for a, b in zip(row, row_before, strict=True)]
            if form == "product":
                ratios = [torch.exp(sum(gaps[1:], gaps[0]))]
            elif form == "geometric_mean":
                ratios = [torch.exp(sum(gaps[1:], gaps[0]) / len(gaps))]
            else:
                ratios = [gap.exp() for gap in gaps]
            terms = [
                torch.min(r * advantage, r.clamp(1 - clip, 1 + clip) * advantage) for r in ratios
            ]
            values.append(torch.stack(terms).mean())
    objective = torch.stack(values).mean()
    (gradient,) = torch.autograd.grad(objective, exact)

    world = enumerate_all(old)
    weights = new.float().requires_grad_()
    found = model_surrogate(
        world.likelihood(weights), REWARDS[world.steps.sample_M], clip=clip, form=form
    )
    found.value_M.mean().backward()
    assert weights.grad is not None
    assert float(found.value_M.mean().detach()) == pytest.approx(
        float(objective.detach()), abs=1e-6
    )
    assert torch.allclose(weights.grad.double(), gradient, atol=1e-6)
    assert 0 < float(found.clipped_M.mean()) < 1  # both branches were taken


@pytest.mark.parametrize("form", FORMS)
def test_at_the_old_weights_every_ratio_is_one(form: RatioForm) -> None:
    old = table(3)
    world = enumerate_all(old)
    found = model_surrogate(
        world.likelihood(old.float()), REWARDS[world.steps.sample_M], clip=0.2, form=form
    )
    assert torch.allclose(found.ratio_M, torch.ones_like(found.ratio_M), atol=1e-5)
    assert not found.clipped_M.any()


@pytest.mark.parametrize("form", FORMS)
def test_joint_ratio_is_the_product_of_both_parts(form: RatioForm) -> None:
    """Eq. 17; the frozen part's ratio of one changes nothing."""
    world = enumerate_all(table(4))
    tokens = world.likelihood((table(4) + 0.1 * table(5)).float())
    advantage_M = torch.ones(len(world.steps))
    other_M = torch.linspace(-0.1, 0.1, len(world.steps))
    alone = model_surrogate(tokens, advantage_M, 10.0, form)
    frozen = model_surrogate(tokens, advantage_M, 10.0, form, torch.zeros_like(other_M))
    joint = model_surrogate(tokens, advantage_M, 10.0, form, other_M)
    assert torch.equal(alone.value_M, frozen.value_M)
    assert torch.allclose(joint.ratio_M, alone.ratio_M * other_M.exp(), rtol=1e-5)


@given(st.floats(-30, 30), st.floats(-3, 3), st.floats(0.01, 0.9))
def test_surrogate_is_the_pessimistic_one(log_ratio: float, advantage: float, clip: float) -> None:
    x = torch.tensor([log_ratio], requires_grad=True)
    value, ratio, cut = surrogate(x, torch.tensor([advantage]), clip)
    value.sum().backward()
    assert value.isfinite().all()
    assert float(value.detach()) <= float(ratio) * np.float32(advantage) + 1e-6
    assert x.grad is not None
    if bool(cut):
        assert float(x.grad) == 0
    inside = 1 - clip <= float(ratio) <= 1 + clip
    if inside:
        assert float(value.detach()) == pytest.approx(float(ratio) * advantage, rel=1e-4, abs=1e-6)


def test_schedule_gradient_is_unbiased() -> None:
    """E[R(a)] under N(mean, sigma) by quadrature; its derivative by the chain rule instead."""
    torch.manual_seed(0)
    sigma = 0.3
    policy = SchedulePolicy(SchedulePolicyConfig.for_width(8).model_copy(update={"sigma": sigma}))
    torch.nn.init.normal_(policy.last.weight, std=0.3)
    features, time = torch.randn(1, 8, 2, 2), torch.tensor([0.5])
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    mean = policy(features, time).detach()[0]
    # The reward reads the second component only; the others sit at their means.
    raw_M4 = mean.repeat(40, 1)
    raw_M4[:, 1] += sigma * torch.tensor(nodes, dtype=torch.float32)
    value_M = torch.sin(2 * raw_M4[:, 1].double())
    slope = float((torch.tensor(weights) * 2 * torch.cos(2 * raw_M4[:, 1].double())).sum())

    means_M4 = policy(features.expand(40, -1, -1, -1), time.expand(40))
    used_M4 = torch.ones(40, 4, dtype=torch.bool)
    logprob_M = policy.log_prob(raw_M4, means_M4, used_M4)
    found = schedule_surrogate(logprob_M, logprob_M.detach(), value_M.float(), clip=0.2)
    (torch.tensor(weights, dtype=torch.float32) * found.value_M).sum().backward()
    assert policy.last.bias.grad is not None
    assert float(policy.last.bias.grad[1]) == pytest.approx(slope, abs=1e-4)


def test_a_component_that_a_step_does_not_use_gets_no_gradient() -> None:
    torch.manual_seed(0)
    config = SchedulePolicyConfig.for_width(8)
    partial = config.model_copy(update={"active": (False, True, False, True)})
    for used, each in (
        (torch.tensor([[False, True, False, True]]), config),
        (torch.ones(1, 4, dtype=torch.bool), partial),
    ):
        policy = SchedulePolicy(each)
        mean = policy(torch.randn(1, 8, 2, 2), torch.tensor([0.9]))
        raw = policy.sample(mean, torch.randn(1, 4)).detach()
        policy.log_prob(raw, mean, used).sum().backward()
        assert policy.last.bias.grad is not None
        assert (policy.last.bias.grad != 0).tolist() == [False, True, False, True]


def test_token_kl_is_exact() -> None:
    world = enumerate_all(table(6))
    new, reference = world.likelihood(table(6).float()), world.likelihood(table(7).float())
    kl_K = kl_divergence(Categorical(logits=new.logits_KV), Categorical(logits=reference.logits_KV))
    by_hand = torch.zeros(len(world.steps))
    for k, step in enumerate(new.step_K.tolist()):
        by_hand[step] += kl_K[k]
    assert torch.allclose(token_kl(new, reference, len(world.steps)), by_hand, atol=1e-6)
    same = token_kl(new, replace(new), len(world.steps))
    assert torch.allclose(same, torch.zeros_like(same), atol=1e-6)


def test_action_kl_is_that_of_gaussians() -> None:
    mean, reference = torch.randn(5, 4), torch.randn(5, 4)
    used = torch.rand(5, 4) < 0.6
    expected = kl_divergence(Normal(mean, 0.3), Normal(reference, 0.3)) * used
    assert torch.allclose(action_kl(mean, reference, used, 0.3), expected.sum(1), rtol=1e-5)
