"""log softmax(l / tau) for training: values and gradients against float64, and the memory it takes.

Shape letters: M rows, V codes, D width.
"""

import pytest
import torch

from cogrpo_core.kernels import logprob, ops
from tests.core.kernels.largest import LargestTensor
from tests.core.kernels.worker import call, gradients, linear_gradients

TEMPERATURES = torch.tensor([1.0, 0.4, 2.5])


def problem(rows: int, codes: int, seed: int = 0):
    """Random logits, temperatures, tokens, and the gradient from above."""
    generator = torch.Generator().manual_seed(seed)
    logits_MV = 3 * torch.randn(rows, codes, generator=generator)
    token_M = torch.randint(0, codes, (rows,), generator=generator)
    return (
        logits_MV,
        TEMPERATURES[torch.arange(rows) % 3],
        token_M,
        torch.randn(rows, generator=generator),
    )


def linear_problem(rows: int, codes: int, dim: int, dtype=torch.float32):
    """States, weight and bias; temperatures and tokens; the gradient from above."""
    _, temperature_M, token_M, grad_M = problem(rows, codes)
    generator = torch.Generator().manual_seed(1)
    leaves = tuple(
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((rows, dim), (codes, dim), (codes,))
    )
    return leaves, (temperature_M, token_M), grad_M


def exact(leaves, rest, grad_M):
    """Value and gradients by autograd over the plain formula, in float64."""
    states_MD, weight_VD, bias_V = (x.double().requires_grad_() for x in leaves)
    temperature_M, token_M = rest
    logits_MV = (states_MD @ weight_VD.t() + bias_V) / temperature_M[:, None]
    value_M = logits_MV.log_softmax(1).gather(1, token_M[:, None])[:, 0]
    value_M.backward(grad_M.double())
    return value_M.detach(), states_MD.grad, weight_VD.grad, bias_V.grad


def exact_logits(logits_MV, temperature_M, token_M, grad_M):
    leaf_MV = logits_MV.double().requires_grad_()
    value_M = (leaf_MV / temperature_M[:, None]).log_softmax(1)[torch.arange(len(token_M)), token_M]
    value_M.backward(grad_M.double())
    return value_M.detach(), leaf_MV.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes", [1, 7, 300, 9000])
def test_value_and_gradient_are_those_of_float64(interpreted, codes, dtype):
    logits_MV, temperature_M, token_M, grad_M = problem(6, codes)
    logits_MV = logits_MV.to(dtype)
    arguments = ("token_logprob", (logits_MV,), (temperature_M, token_M), grad_M)
    value_M, grad_MV = exact_logits(logits_MV.float(), temperature_M, token_M, grad_M)
    # A bfloat16 gradient is rounded once, to 8 bits; Triton's interpreter cuts them off instead.
    rounding = 1e-6 if dtype == torch.float32 else 2.0**-7
    for found in (gradients(*arguments), interpreted(gradients, *arguments)):
        assert found[0].dtype == torch.float32 and found[1].dtype == dtype
        assert torch.allclose(found[0].double(), value_M, rtol=1e-6, atol=3e-6)
        assert torch.allclose(found[1].double(), grad_MV, rtol=rounding, atol=1e-6)


def test_cold_rows_have_no_subnormal_numbers():
    """A CPU computes with them many times slower; below the floor a gradient is nothing."""
    logits_MV, _, token_M, grad_M = problem(6, 300)
    temperature_M = torch.full_like(grad_M, 0.1)
    value_M, grad_MV = gradients("token_logprob", (logits_MV,), (temperature_M, token_M), grad_M)
    assert (logits_MV.amax(1) - logits_MV.amin(1) > 10).all()  # weights down to exp(-100)
    assert grad_MV.abs().min() > 1e-30
    expected_M, expected_MV = exact_logits(logits_MV, temperature_M, token_M, grad_M)
    assert value_M.min() < -60  # exact below the floor too
    assert torch.allclose(value_M.double(), expected_M, rtol=1e-6, atol=3e-6)
    assert torch.allclose(grad_MV.double(), expected_MV, rtol=1e-5, atol=1e-20)


def test_gradcheck_against_float64(monkeypatch):
    monkeypatch.setattr(logprob, "CPU_CHUNK", 12)  # several chunks, the last one smaller
    leaves, rest, _ = linear_problem(5, 6, 3, torch.float64)
    for leaf in leaves:
        leaf.requires_grad_()
    states_MD, weight_VD, bias_V = leaves

    def linear(*inputs):
        return ops.linear_token_logprob(inputs[0], inputs[1], *rest, *inputs[2:])

    assert torch.autograd.gradcheck(linear, (states_MD, weight_VD, bias_V))
    assert torch.autograd.gradcheck(linear, (states_MD, weight_VD))
    assert torch.autograd.gradcheck(linear, (states_MD, weight_VD.detach()))
    logits_MV = (states_MD @ weight_VD.t()).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.token_logprob(x, *rest), (logits_MV,))


@pytest.mark.parametrize("chunk", [1, 3 * 300, 10**6])
def test_linear_layer_in_chunks_has_the_gradients_of_float64(interpreted, chunk):
    """Chunks of a row each, of three rows with one left over, and all at once."""
    arguments = linear_problem(7, 300, 16)
    expected = exact(*arguments)
    for found in (
        linear_gradients(chunk, *arguments),
        interpreted(linear_gradients, chunk, *arguments),
    ):
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == torch.float32
            assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)


def test_linear_layer_in_bfloat16_is_as_good_as_the_plain_one():
    leaves, rest, grad_M = linear_problem(64, 200, 32, torch.bfloat16)
    expected = exact(leaves, rest, grad_M)
    found = linear_gradients(10 * 200, leaves, rest, grad_M)
    plain = [x.detach().requires_grad_() for x in leaves]
    logits_MV = torch.nn.functional.linear(*plain).float() / rest[0][:, None]
    value_M = logits_MV.log_softmax(1).gather(1, rest[1][:, None])[:, 0]
    value_M.backward(grad_M)
    for a, b, c in zip(found[1:], expected[1:], (x.grad for x in plain), strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a - b).norm()) <= 1.1 * float((c - b).norm())


def test_no_rows():
    leaves, rest, grad_M = linear_problem(0, 9, 4)
    value_M, grad_MD, grad_VD, grad_V = linear_gradients(10, leaves, rest, grad_M)
    assert value_M.shape == (0,) and grad_MD.shape == (0, 4)
    assert not grad_VD.any() and not grad_V.any()


def test_only_what_needs_a_gradient_gets_one():
    (states_MD, weight_VD, _), rest, grad_M = linear_problem(4, 9, 3)
    states_MD.requires_grad_()
    ops.linear_token_logprob(states_MD, weight_VD, *rest).backward(grad_M)
    assert states_MD.grad is not None and weight_VD.grad is None


def test_edge_rows(interpreted):
    """Impossible codes, huge logits, one certain code; and NaN where there is no distribution."""
    inf, nan = torch.inf, torch.nan
    logits_MV = torch.tensor(
        [
            [-inf, 0.0, -inf, 1.0],
            [3e38, 3e38, -3e38, 0.0],
            [0.0, 500.0, 0.0, 0.0],
            [1.0, 1.0, 1.0, 1.0],
            [nan, 0.0, 0.0, 0.0],
            [0.0, inf, 0.0, 0.0],
            [-inf, -inf, -inf, -inf],
        ]
    )
    token_M = torch.tensor([3, 0, 1, 2, 1, 1, 1])
    arguments = ("token_logprob", (logits_MV,), (torch.ones(7), token_M), torch.ones(7))
    expected_M, expected_MV = exact_logits(logits_MV, torch.ones(7), token_M, torch.ones(7))
    for value_M, grad_MV in (gradients(*arguments), interpreted(gradients, *arguments)):
        assert torch.allclose(value_M[:4].double(), expected_M[:4], atol=1e-6)
        assert torch.allclose(grad_MV[:4].double(), expected_MV[:4], atol=1e-6)
        assert value_M[4:].isnan().all()
        assert grad_MV[4:].isnan().any(dim=1).all()
    impossible = (torch.tensor([[0.0, -inf]]), torch.ones(1), torch.tensor([1]))
    assert float(ops.token_logprob(*impossible)) == -inf
    assert float(interpreted(call, "token_logprob", *impossible)) == -inf


def test_logits_of_all_positions_never_exist(monkeypatch):
    rows, codes, dim, chunk = 640, 128, 8, 2**10
    monkeypatch.setattr(logprob, "CPU_CHUNK", chunk)
    leaves, rest, grad_M = linear_problem(rows, codes, dim)
    states_MD, weight_VD, bias_V = (x.requires_grad_() for x in leaves)
    with LargestTensor() as fused:
        ops.linear_token_logprob(states_MD, weight_VD, rest[0], rest[1], bias_V).backward(grad_M)
    with LargestTensor() as plain:
        logits_MV = torch.nn.functional.linear(states_MD, weight_VD, bias_V)
        ops.token_logprob(logits_MV, *rest).backward(grad_M)
    assert plain.elements >= rows * codes, "the count sees such tensors"
    largest_input = max(x.numel() for x in leaves)
    assert fused.elements <= max(chunk, largest_input) < rows * codes / 10


def test_peak_memory_is_a_quarter_of_the_plain_ones(monkeypatch):
    """What torch's profiler says is allocated at once, forward and backward."""
    monkeypatch.setattr(logprob, "CPU_CHUNK", 2**14)
    leaves, rest, grad_M = linear_problem(1024, 1024, 8)

    def peak(step) -> int:
        for leaf in leaves:
            leaf.requires_grad_().grad = None
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            step()
        now = highest = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                highest = max(highest, now)
        return highest

    def fused() -> None:
        states_MD, weight_VD, bias_V = leaves
        ops.linear_token_logprob(states_MD, weight_VD, rest[0], rest[1], bias_V).backward(grad_M)

    def plain() -> None:
        logits_MV = torch.nn.functional.linear(*leaves) / rest[0][:, None]
        logits_MV.log_softmax(1).gather(1, rest[1][:, None])[:, 0].backward(grad_M)

    assert peak(plain) >= 2 * 4 * 1024 * 1024
    assert peak(fused) <= peak(plain) / 4
