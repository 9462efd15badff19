"""log softmax(l / tau) of one code a row, for training: its definition, and a linear layer with it.

`forward` and `backward` work on rows of logits and are the definition; logprob_triton.py has the
kernels of the same names, and ops.py picks. The two autograd functions below take either pair.
`LinearTokenLogprob` makes the logits itself, chunk by chunk, and all but the last chunk again in
the backward pass: up to one more matrix product, for which logits and their gradient never exist
as a whole.

Shape letters: M rows (positions), m rows of one chunk, V codes, D width.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cogrpo_core.kernels.sample import FLOOR

CPU_CHUNK = 2**20
"""Logits in one chunk on a CPU: 4 MB, which stay in its caches between the passes over them."""
DEVICE_CHUNK = 2**25
"""Logits in one chunk elsewhere: 4096 rows of 8192 codes, enough for a full matrix product."""

Forward: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Backward: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def forward(logits_MV: Tensor, temperature_M: Tensor, token_M: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(l / tau)_token [M] and, for the backward pass, the row's normaliser [M,2].

    The normaliser is max l and log sum exp((l - max l) / tau). Float32, or float64 for such logits.
    A row that is no distribution gives NaN, as in sample.py.
    """
    wide = torch.promote_types(logits_MV.dtype, torch.float32)
    logprob_M = torch.empty_like(temperature_M, dtype=wide)
    normaliser_M2 = logprob_M.new_empty(len(logprob_M), 2)
    for rows in chunks(logits_MV.shape[0], logits_MV.shape[1], logits_MV.device):
        logits_mV = logits_MV[rows].to(wide)
        high_m1 = logits_mV.amax(dim=1, keepdim=True)
        tempered_mV = (logits_mV - high_m1).div_(temperature_M[rows, None])
        chosen_m1 = tempered_mV.gather(1, token_M[rows, None])
        log_total_m1 = tempered_mV.clamp_(min=FLOOR).exp_().sum(dim=1, keepdim=True).log_()
        logprob_M[rows] = (chosen_m1 - log_total_m1)[:, 0]
        normaliser_M2[rows] = torch.cat([high_m1, log_total_m1], dim=1)
    return logprob_M, normaliser_M2


def backward(
    logits_MV: Tensor,
    temperature_M: Tensor,
    token_M: Tensor,
    normaliser_M2: Tensor,
    grad_M: Tensor,
    out_MV: Tensor,
) -> Tensor:
    """The gradient to the logits, g / tau (onehot(token) - softmax(l / tau)), written to `out_MV`.

    `out_MV` is of the logits' type and may be the logits themselves.
    """
    wide = normaliser_M2.dtype
    for rows in chunks(logits_MV.shape[0], logits_MV.shape[1], logits_MV.device):
        temperature_m1 = temperature_M[rows, None]
        high_m1, log_total_m1 = normaliser_M2[rows].split(1, dim=1)
        scale_m1 = (grad_M[rows, None] / temperature_m1).to(wide)
        tempered_mV = (logits_MV[rows].to(wide) - high_m1).div_(temperature_m1)
        grad_mV = tempered_mV.clamp_(min=FLOOR).exp_().mul_(-scale_m1 * torch.exp(-log_total_m1))
        out_MV[rows] = grad_mV.scatter_add_(1, token_M[rows, None], scale_m1)
    return out_MV


def chunks(rows: int, codes: int, device: torch.device) -> Iterator[slice]:
    """Slices of `rows` rows, such that the logits of one slice are few; at least one row each."""
    size = max(1, (CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK) // codes)
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


class TokenLogprob(torch.autograd.Function):
    """`forward` and `backward` over given logits, which are all that is kept in between."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_MV: Tensor,
        temperature_M: Tensor,
        token_M: Tensor,
        forward_rows: Forward,
        backward_rows: Backward,
    ) -> Tensor:
        logprob_M, normaliser_M2 = forward_rows(logits_MV, temperature_M, token_M)
        ctx.save_for_backward(logits_MV, temperature_M, token_M, normaliser_M2)
        ctx.backward_rows = backward_rows
        return logprob_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        logits_MV, *row, normaliser_M2 = ctx.saved_tensors
        out_MV = torch.empty_like(logits_MV)
        return ctx.backward_rows(logits_MV, *row, normaliser_M2, grad_M, out_MV), *(None,) * 4


class LinearTokenLogprob(torch.autograd.Function):
    """The same over the logits W h + b of states h; keeps the logits of one chunk, the last."""

    @staticmethod
    def forward(
        ctx: Any,
        states_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        temperature_M: Tensor,
        token_M: Tensor,
        forward_rows: Forward,
        backward_rows: Backward,
    ) -> Tensor:
        count, codes = len(states_MD), len(weight_VD)
        parts = list(chunks(count, codes, states_MD.device))
        wide = torch.promote_types(states_MD.dtype, torch.float32)
        logprob_M = states_MD.new_empty(count, dtype=wide)
        memory_mV = states_MD.new_empty(parts[0].stop if parts else 0, codes)
        normalisers = []
        for rows in parts:
            logits_mV = _logits(states_MD[rows], weight_VD, bias_V, memory_mV)
            logprob_M[rows], normaliser_m2 = forward_rows(
                logits_mV, temperature_M[rows], token_M[rows]
            )
            normalisers.append(normaliser_m2)
        ctx.save_for_backward(
            states_MD, weight_VD, bias_V, temperature_M, token_M, memory_mV, *normalisers
        )
        ctx.backward_rows = backward_rows
        ctx.parts = parts
        return logprob_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        states_MD, weight_VD, bias_V, temperature_M, token_M, last_mV, *normalisers = (
            ctx.saved_tensors
        )
        to_states, to_weight, to_bias = ctx.needs_input_grad[:3]
        # Sums over chunks are kept in float32, also where each chunk's product is bfloat16.
        wide = grad_M.dtype
        grad_MD = torch.empty_like(states_MD) if to_states else None
        grad_VD = torch.zeros_like(weight_VD, dtype=wide) if to_weight else None
        grad_V = torch.zeros_like(bias_V, dtype=wide) if to_bias else None
        memory_mV = torch.empty_like(last_mV)
        for rows, normaliser_m2 in zip(ctx.parts, normalisers, strict=True):
            if rows is ctx.parts[-1]:
                logits_mV = last_mV[: rows.stop - rows.start]
            else:
                logits_mV = _logits(states_MD[rows], weight_VD, bias_V, memory_mV)
            out_mV = memory_mV[: len(logits_mV)]
            row = (temperature_M[rows], token_M[rows], normaliser_m2, grad_M[rows])
            grad_mV = ctx.backward_rows(logits_mV, *row, out_mV)
            if grad_MD is not None:
                torch.mm(grad_mV, weight_VD, out=grad_MD[rows])
            if grad_VD is not None and grad_mV.dtype == wide:
                grad_VD.addmm_(grad_mV.t(), states_MD[rows])
            elif grad_VD is not None:
                grad_VD += grad_mV.t() @ states_MD[rows]
            if grad_V is not None:
                grad_V += grad_mV.sum(dim=0, dtype=wide)
        return (
            grad_MD,
            None if grad_VD is None else grad_VD.to(weight_VD.dtype),
            None if grad_V is None else grad_V.to(bias_V.dtype),
            *(None,) * 4,
        )


def _logits(
    states_mD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, memory_mV: Tensor
) -> Tensor:
    """W h + b of one chunk, written into the first rows of `memory_mV`."""
    logits_mV = torch.mm(states_mD, weight_VD.t(), out=memory_mV[: len(states_mD)])
    return logits_mV if bias_V is None else logits_mV.add_(bias_V)
