"""The forms for CPUs against their definitions: values, gradients, and which one runs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cogrpo_core.kernels import ops, pointwise

ROTATION = torch.stack([torch.linspace(0, 3, 20).cos(), torch.linspace(0, 3, 20).sin()], dim=-1)


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    "gelu": (pointwise.gelu, ops.gelu, [(7, 33)], ()),
    "modulate": (pointwise.modulate, ops.modulate, [(3, 5, 16), (3, 1, 16), (3, 1, 16)], ()),
    "norm": (pointwise.rms_norm, ops.rms_norm, [(3, 5, 2, 8), (8,)], ()),
    "rotated norm": (
        pointwise.rms_norm,
        ops.rms_norm,
        [(3, 5, 2, 8), (8,)],
        (ROTATION.view(5, 4, 2),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_float64(name: str) -> None:
    definition, form, shapes, rest = CASES[name]
    given = leaves(*shapes)
    exact = [x.detach().double().requires_grad_() for x in given]
    # The definitions of norm and rotation narrow to float32 inside; gelu and modulate do not.
    expected = definition(*exact, *rest)
    found = form(*given, *rest)
    assert torch.allclose(found.double(), expected.double(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(form(*given, *rest), found)  # what samples is what is trained
    above = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    # As attention's backward pass gives it: no longer contiguous.
    above = above.transpose(0, 1).contiguous().transpose(0, 1)
    wanted = torch.autograd.grad(expected, exact, above.double())
    for a, b in zip(torch.autograd.grad(found, given, above), wanted, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)


def test_gelu_far_out_is_finite() -> None:
    x = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4], requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.gelu(x).sum(), x)
    assert torch.equal(ops.gelu(x), pointwise.gelu(x))
    assert torch.allclose(gradient, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_the_variable_forces_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    (x,) = leaves((2, 3))
    assert "Gelu" in str(ops.gelu(x).grad_fn)
    by_hand = str(ops.gelu(x).grad_fn)
    monkeypatch.setenv(ops.VARIABLE, "reference")
    assert str(ops.gelu(x).grad_fn) != by_hand


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_take_the_definitions(dtype: torch.dtype) -> None:
    x, weight = (each.detach().to(dtype) for each in leaves((2, 3, 8), (8,)))
    assert ops.rms_norm(x, weight).dtype is dtype
    assert torch.equal(ops.rms_norm(x, weight), pointwise.rms_norm(x, weight))
