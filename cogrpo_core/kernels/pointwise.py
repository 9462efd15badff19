"""Norms, modulation, rotation and GELU of the transformer: definitions, and forms made for CPUs.

Each pair gives the same to float rounding. The definition is what a compiler fuses, and what runs
on a GPU; eagerly it makes a pass over memory for each sign of its formula, forward and backward.
The forms for CPUs make fewer passes, in place, with less kept in between. ops.py picks.

Shape letters: S positions, D width, `...` any axes before them.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPS = 1e-6
_CUBIC = 0.044715
_TANH = 2 * math.sqrt(2 / math.pi)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return F.gelu(x, approximate="tanh")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Non-affine LayerNorm of x [B, S, D], then scale and shift [B, 1, D]."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def rms_norm(x: Tensor, weight: Tensor, rotation: Tensor | None = None) -> Tensor:
    """Root-mean-square norm over the last axis in float32, given in x's type.

    With `rotation` [S, D/2, 2], cosines and sines, x is [..., S, heads, D], and each pair of
    neighbouring channels is turned afterwards.
    """
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)
    normed = (x.float() * scale * weight.float()).to(x.dtype)
    return normed if rotation is None else rotate(normed, rotation)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns each pair of neighbouring channels of x [..., S, heads, D], in float32."""
    cos, sin = rotation.unsqueeze(-3).unbind(-1)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return pairs.flatten(-2).to(x.dtype)


def cpu_gelu(x: Tensor) -> Tensor:
    """`gelu` for float32 on a CPU."""
    if not torch.is_grad_enabled():
        return _gelu(x)
    out: Tensor = Gelu.apply(x)  # type: ignore[no-untyped-call]
    return out


def cpu_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`modulate` for float32 on a CPU."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


def cpu_rms_norm(x: Tensor, weight: Tensor, rotation: Tensor | None = None) -> Tensor:
    """`rms_norm` for float32 on a CPU."""
    if not torch.is_grad_enabled():
        return _normed(x, _inverse_length(x), weight, rotation)
    out: Tensor = RmsNorm.apply(x, weight, rotation)  # type: ignore[no-untyped-call]
    return out


class Gelu(torch.autograd.Function):
    """x sigmoid(2z), the tanh form by an identity: the exponential is vectorised, tanh is slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        to_x: Tensor = torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
        return to_x


def _gelu(x: Tensor) -> Tensor:
    slope = torch.addcmul(x.new_tensor(_TANH), x, x, value=_TANH * _CUBIC)
    return slope.mul_(x).sigmoid_().mul_(x)


class RmsNorm(torch.autograd.Function):
    """Keeps x and one number a row; a rotation is one product of complex numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rotation: Tensor | None) -> Tensor:
        inverse = _inverse_length(x)
        ctx.save_for_backward(x, weight, inverse, rotation)
        return _normed(x, inverse, weight, rotation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse, rotation = ctx.saved_tensors
        if rotation is not None:
            turned = _pairs(grad.contiguous()) * _turn(rotation).conj()
            grad = torch.view_as_real(turned).flatten(-2)
        normed = x * inverse
        product = grad * normed
        to_weight = product.flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None
        along = torch.mv(product.flatten(0, -2), weight).div_(x.shape[-1]).view_as(inverse)
        to_x = (grad * weight).addcmul_(normed, along, value=-1).mul_(inverse)
        return to_x, to_weight, None


def _inverse_length(x: Tensor) -> Tensor:
    """One over the root mean square of each row."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse: Tensor = length.square_().div_(x.shape[-1]).add_(EPS).rsqrt_()
    return inverse


def _normed(x: Tensor, inverse: Tensor, weight: Tensor, rotation: Tensor | None) -> Tensor:
    out: Tensor = (x * inverse).mul_(weight)
    if rotation is not None:
        _pairs(out).mul_(_turn(rotation))
    return out


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _turn(rotation: Tensor) -> Tensor:
    return torch.view_as_complex(rotation).unsqueeze(-2)
