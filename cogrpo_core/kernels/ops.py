"""The one place that picks an implementation: Triton on CUDA, the torch definition elsewhere.

`COGRPO_KERNELS=reference` forces the definitions, `COGRPO_KERNELS=triton` the kernels (on a CPU
they need Triton's interpreter, `TRITON_INTERPRET=1`). Triton is imported by the first call that
uses it. Signatures are those of the definitions: sample.py, remask.py, logprob.py, pointwise.py,
../noise.py.

Shape letters: B samples, N image tokens, M masked positions or rows, V codes, D width.
"""

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from cogrpo_core import noise
from cogrpo_core.kernels import logprob, pointwise, remask, sample
from cogrpo_core.kernels.remask import Filled
from cogrpo_core.kernels.sample import Draw

VARIABLE = "COGRPO_KERNELS"
MAX_ROW = 16384
"""The sampling kernels hold a row of codes, or a grid of tokens, in registers. No model of this
family has more; a longer one takes the definition on every device."""


class KernelChoiceError(ValueError):
    """`COGRPO_KERNELS` asks for what there is not."""


def uses_triton(device: torch.device) -> bool:
    """Whether tensors on `device` go to the Triton kernels. Raises `KernelChoiceError`."""
    choice = os.environ.get(VARIABLE, "")
    if choice not in ("", "reference", "triton"):
        raise KernelChoiceError(
            f"{VARIABLE} is {choice!r}, not 'reference' or 'triton'; leave it unset to use Triton "
            "on CUDA and the definitions elsewhere"
        )
    if choice != "triton":
        return not choice and device.type == "cuda" and _has_triton()
    if not _has_triton():
        raise KernelChoiceError(f"{VARIABLE} is 'triton', which is not installed here")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise KernelChoiceError(
            f"{VARIABLE} is 'triton', but the tensors are on the device '{device.type}', where it "
            "runs in its interpreter only: set TRITON_INTERPRET=1 as well"
        )
    return True


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def step_noise(seed_B: Tensor, step_B: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """One step's noise: uniforms [B,N] for the token draw, Gumbel noise [B,N] for the re-mask."""
    if uses_triton(seed_B.device):
        from cogrpo_core.kernels import noise_triton

        return noise_triton.step_noise(seed_B, step_B, num_tokens)
    return noise.step_noise(seed_B, step_B, num_tokens)


def sample_tokens(logits_MV: Tensor, sample_temperature_M: Tensor, uniform_M: Tensor) -> Draw:
    """V ~ softmax(l / tau_s) (Eq. 2) with its tempered log-probability and its confidence."""
    if logits_MV.shape[1] <= MAX_ROW and uses_triton(logits_MV.device):
        from cogrpo_core.kernels import sample_triton

        return sample_triton.sample_tokens(logits_MV, sample_temperature_M, uniform_M)
    return sample.sample_tokens(logits_MV, sample_temperature_M, uniform_M)


def fill_surest(
    known: Filled,
    masked_BN: Tensor,
    draw: Draw,
    gumbel_BN: Tensor,
    temperature_B: Tensor,
    count_B: Tensor,
    step_B: Tensor,
) -> Filled:
    """`known` after a step: the drawn tokens but the `count` that are masked again (Eq. 4-5)."""
    chance = (gumbel_BN, temperature_B, count_B, step_B)
    if masked_BN.shape[1] <= MAX_ROW and uses_triton(masked_BN.device):
        from cogrpo_core.kernels import remask_triton

        return remask_triton.fill_surest(known, masked_BN, draw, *chance)
    return remask.fill_surest(known, masked_BN, draw, *chance)


def token_logprob(logits_MV: Tensor, temperature_M: Tensor, token_M: Tensor) -> Tensor:
    """log softmax(l / tau)_token [M], float32, with a gradient to the logits."""
    rows = _logprob_rows(logits_MV.device)
    value_M: Tensor = logprob.TokenLogprob.apply(  # type: ignore[no-untyped-call]
        logits_MV, temperature_M, token_M, *rows
    )
    return value_M


def linear_token_logprob(
    states_MD: Tensor,
    weight_VD: Tensor,
    temperature_M: Tensor,
    token_M: Tensor,
    bias_V: Tensor | None = None,
) -> Tensor:
    """`token_logprob` of the logits W h + b, which never exist as a whole, nor does their gradient.

    Gives [M], float32, with gradients to states, weight and bias. All three have one type, in which
    the logits are made, chunk by chunk.
    """
    rows = _logprob_rows(states_MD.device)
    value_M: Tensor = logprob.LinearTokenLogprob.apply(  # type: ignore[no-untyped-call]
        states_MD, weight_VD, bias_V, temperature_M, token_M, *rows
    )
    return value_M


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return pointwise.cpu_gelu(x) if _has_cpu_form(x) else pointwise.gelu(x)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Non-affine LayerNorm of x [B, S, D], then scale and shift [B, 1, D]."""
    form = pointwise.cpu_modulate if _has_cpu_form(x) else pointwise.modulate
    return form(x, shift, scale)


def rms_norm(x: Tensor, weight: Tensor, rotation: Tensor | None = None) -> Tensor:
    """Root-mean-square norm of the last axis, and the rotation of x [..., S, heads, D] after it."""
    form = pointwise.cpu_rms_norm if _has_cpu_form(x) else pointwise.rms_norm
    return form(x, weight, rotation)


def _has_cpu_form(x: Tensor) -> bool:
    """Whether x goes to the forms for CPUs; a compiler is given the definitions, which it fuses."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and os.environ.get(VARIABLE) != "reference"


def _logprob_rows(device: torch.device) -> tuple[Any, Any]:
    """Forward and backward over rows of logits."""
    if uses_triton(device):
        from cogrpo_core.kernels import logprob_triton

        return logprob_triton.forward, logprob_triton.backward
    return logprob.forward, logprob.backward
