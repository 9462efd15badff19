"""Compiled kernels against the definitions, at the sizes of the 1B model; needs a GPU.

Shape letters: M rows, V codes, D width.
"""

import pytest
import torch

from cogrpo_core import noise
from cogrpo_core.kernels import logprob, ops, remask, sample
from tests.core.kernels import test_remask, test_sample
from tests.core.kernels.test_logprob import exact, linear_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def to_cuda(value):
    """The same with its tensors on the GPU."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, sample.Draw):
        return sample.Draw(*(x.cuda() for x in value))
    if isinstance(value, remask.Filled):
        return remask.Filled(*(x.cuda() for x in value))
    return value


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("COGRPO_KERNELS", "triton")


def test_uniforms_are_bit_identical():
    seed_B, step_B = torch.tensor([0, 5, -1]), torch.tensor([0, 47, 255])
    uniform_BN, gumbel_BN = ops.step_noise(seed_B.cuda(), step_B.cuda(), 4096)
    expected = noise.step_noise(seed_B, step_B, 4096)
    assert torch.equal(uniform_BN.cpu(), expected[0])
    assert torch.allclose(gumbel_BN.cpu(), expected[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes", [300, 2048, 8192, 16384])
def test_draws_are_those_of_the_cpu_but_for_ties(codes, dtype):
    logits_MV, temperature_M, uniform_M = test_sample.problem(4096, codes, seed=codes)
    logits_MV = logits_MV.to(dtype)
    arguments = (logits_MV, temperature_M, uniform_M)
    draw = ops.sample_tokens(*map(to_cuda, arguments))
    found = sample.Draw(*(x.cpu() for x in draw))
    most = round(4096 * test_sample.MOST_TIES)
    test_sample.assert_alike(found, sample.sample_tokens(*arguments), most_ties=most)
    assert test_sample.miss(found, logits_MV.float(), temperature_M, uniform_M) < 1e-6


@pytest.mark.parametrize("num_tokens", [64, 1024, 4096, 16384])
def test_choice_is_that_of_the_cpu(num_tokens):
    arguments = test_remask.problem(8, num_tokens)
    found = ops.fill_surest(*map(to_cuda, arguments))
    expected = remask.fill_surest(*arguments)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


def test_linear_layer_has_the_gradients_of_float64(monkeypatch):
    monkeypatch.setattr(logprob, "DEVICE_CHUNK", 100 * 8192)
    leaves, rest, grad_M = linear_problem(333, 8192, 64)
    states_MD, weight_VD, bias_V = (x.cuda().requires_grad_() for x in leaves)
    value_M = ops.linear_token_logprob(states_MD, weight_VD, rest[0].cuda(), rest[1].cuda(), bias_V)
    value_M.backward(grad_M.cuda())
    found = (value_M.detach(), states_MD.grad, weight_VD.grad, bias_V.grad)
    for a, b in zip(found, exact(leaves, rest, grad_M), strict=True):
        assert torch.allclose(a.cpu().double(), b, rtol=1e-3, atol=1e-4)
