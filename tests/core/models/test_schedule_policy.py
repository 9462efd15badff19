"""The scheduling policy: identity at the start, densities, bounds, size and its folder."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cogrpo_core.models.schedule_policy import SchedulePolicy, SchedulePolicyConfig

DIM = 48


def meissonic_rows(steps: int = 48) -> torch.Tensor:
    """The base schedule [T, 4]; its last row has r = 0 (to a rounding) and a small tau_r."""
    t = torch.arange(steps)
    ratio = torch.cos(torch.pi / 2 * (t + 1) / steps)
    tau_r = torch.linspace(2, 0, steps)
    return torch.stack([ratio, torch.ones(steps), tau_r, torch.full((steps,), 9.0)], dim=1)


@pytest.fixture
def policy() -> SchedulePolicy:
    torch.manual_seed(0)
    return SchedulePolicy(SchedulePolicyConfig.for_width(DIM))


@pytest.fixture
def trained(policy: SchedulePolicy) -> SchedulePolicy:
    """One whose zeros have gone."""
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return policy


def test_untrained_mean_is_the_base_schedule_to_the_bit(policy: SchedulePolicy) -> None:
    base = meissonic_rows()
    features = torch.randn(48, DIM, 4, 6)
    mean = policy(features, torch.arange(48) / 48)
    assert torch.equal(mean, torch.zeros(48, 4))
    assert torch.equal(policy.apply_action(base, mean), base)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=64),
    st.floats(0, 100, width=32),
)
def test_zero_residual_keeps_any_base(ratios: list[float], other: float) -> None:
    policy = SchedulePolicy(SchedulePolicyConfig.for_width(8))
    base = torch.full((len(ratios), 4), other)
    base[:, 0] = torch.tensor(ratios)
    for zero in (torch.zeros_like(base), -torch.zeros_like(base)):
        assert torch.equal(policy.apply_action(base, zero), base)


@given(
    st.floats(0, 1, width=32),
    st.floats(0, 10, width=32),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4),
)
def test_any_action_stays_in_its_range(ratio: float, other: float, raw: list[float]) -> None:
    policy = SchedulePolicy(SchedulePolicyConfig.for_width(8))
    base = torch.tensor([[ratio, other, other, other]])
    action = policy.apply_action(base, torch.tensor([raw]))
    assert action.isfinite().all()
    assert (action >= 0).all()
    assert action[0, 0] <= 1


def test_fixed_points_stay_fixed(policy: SchedulePolicy) -> None:
    base = torch.tensor([[0.0, 1.0, 0.0, 9.0], [1.0, 1.0, 0.0, 9.0]])
    for sign in (-1.7, 0.3):
        action = policy.apply_action(base, torch.full((2, 4), sign))
        assert torch.equal(action[:, 0], base[:, 0])
        assert torch.equal(action[:, 2], base[:, 2])
        assert not torch.equal(action[:, 3], base[:, 3])


def test_action_is_the_documented_formula(policy: SchedulePolicy) -> None:
    torch.manual_seed(1)
    base = torch.rand(100, 4) * 0.98 + 0.01
    raw = torch.randn(100, 4)
    shift = raw * torch.tensor(policy.config.action_scales)
    expected = base * shift.exp()
    expected[:, 0] = torch.sigmoid(torch.logit(base[:, 0]) + shift[:, 0])
    torch.testing.assert_close(policy.apply_action(base, raw), expected)


def test_log_prob_is_the_gaussian_over_used_components(policy: SchedulePolicy) -> None:
    torch.manual_seed(2)
    mean, noise = torch.randn(16, 4), torch.randn(16, 4)
    raw = policy.sample(mean, noise)
    used = torch.rand(16, 4) < 0.5
    gaussian = torch.distributions.Normal(mean, policy.config.sigma)
    expected = (gaussian.log_prob(raw) * used).sum(-1)
    torch.testing.assert_close(policy.log_prob(raw, mean, used), expected)
    assert torch.equal(policy.sample(mean, torch.zeros(16, 4)), mean)


def test_mean_depends_on_state_and_time(trained: SchedulePolicy) -> None:
    torch.manual_seed(3)
    features = torch.randn(2, DIM, 4, 4)
    with torch.inference_mode():
        mean = trained(features, torch.tensor([0.25, 0.25]))
        later = trained(features, torch.tensor([0.5, 0.5]))
    assert not torch.allclose(mean[0], mean[1], atol=1e-3)
    assert not torch.allclose(mean, later, atol=1e-3)


def test_any_grid_and_type(trained: SchedulePolicy) -> None:
    """Grids of every size, half precision, autocast: float32 comes out, and rows stay apart."""
    torch.manual_seed(4)
    for height, width in ((1, 1), (3, 5), (16, 16)):
        features, time = torch.randn(3, DIM, height, width).bfloat16(), torch.rand(3)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            mean = trained(features, time)
            alone = trained(features[1:2], time[1:2])
        assert mean.shape == (3, 4)
        assert mean.dtype is torch.float32
        torch.testing.assert_close(mean[1:2], alone)


def test_gradient_reaches_every_parameter(trained: SchedulePolicy) -> None:
    mean = trained(torch.randn(4, DIM, 4, 4), torch.rand(4))
    raw = trained.sample(mean.detach(), torch.randn(4, 4))
    trained.log_prob(raw, mean, torch.ones(4, 4, dtype=torch.bool)).sum().backward()
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_under_one_percent_of_the_one_billion() -> None:
    with torch.device("meta"):
        policy = SchedulePolicy(SchedulePolicyConfig.for_width(1024))
    count = sum(parameter.numel() for parameter in policy.parameters())
    assert 8.5e6 < count < 0.01 * 1_006_946_304  # the paper has 9M


def test_round_trip_is_exact(trained: SchedulePolicy, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    again = SchedulePolicy.from_pretrained(tmp_path)
    assert again.config == trained.config
    features, time = torch.randn(2, DIM, 4, 4), torch.rand(2)
    assert torch.equal(again(features, time), trained(features, time))


def test_inputs_that_do_not_fit(policy: SchedulePolicy) -> None:
    with pytest.raises(ValueError, match=r"not \[batch, 48, height, width\]"):
        policy(torch.randn(2, 4, 4, DIM), torch.rand(2))
    with pytest.raises(ValueError, match=r"time is \(1,\), not \(2,\)"):
        policy(torch.randn(2, DIM, 4, 4), torch.rand(1))
