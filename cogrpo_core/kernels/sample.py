"""The draw of tokens: its definition. sample_triton.py is the kernel, ops.py picks.

Shape letters: M rows, each a masked position; V codes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CPU_CHUNK = 2**18
"""Logits of the rows that are drawn at a time on a CPU: 1 MB, which stay in its cache."""
FLOOR = -60.0
"""No tempered weight is made smaller than exp(FLOOR) = 9e-27. That is nothing beside the largest,
1, and beside the least that a draw asks for, 6e-8 of the total; but numbers below 1e-38, where low
temperatures lead, take a CPU many times longer."""


class Draw(NamedTuple):
    """Tokens drawn at M positions."""

    token_M: Tensor
    logprob_M: Tensor
    """Under the tempered distribution that was drawn from."""
    confidence_M: Tensor
    """Under the untempered one, which decides what is kept."""


def sample_tokens(logits_MV: Tensor, sample_temperature_M: Tensor, uniform_M: Tensor) -> Draw:
    """V ~ softmax(l / tau_s) (Eq. 2) by inverse CDF in float32, and its confidence (Eq. 3).

    A code of probability 0 is never drawn: the code taken is the first whose cumulated weight
    reaches u times the total. A row that is no distribution (it holds NaN or +inf, or nothing but
    -inf) has NaN for logprob and confidence, and the token V - 1: a valid index, so that the step
    goes on without asking the device, and `jobs.record` refuses the picture.
    """
    arguments = (logits_MV, sample_temperature_M, uniform_M)
    on_cpu = logits_MV.device.type == "cpu"
    size = max(1, CPU_CHUNK // logits_MV.shape[1] if on_cpu else len(logits_MV))
    parts = [_draw(*part) for part in zip(*(each.split(size) for each in arguments), strict=True)]
    return parts[0] if len(parts) == 1 else Draw(*map(torch.cat, zip(*parts, strict=True)))


def _draw(logits_MV: Tensor, temperature_M: Tensor, uniform_M: Tensor) -> Draw:
    logits_MV = logits_MV.float()
    shifted_MV = logits_MV - logits_MV.amax(dim=-1, keepdim=True)
    plain_MV = weight_MV = shifted_MV.exp()
    # To look at temperatures costs nothing on a CPU; elsewhere the host would wait.
    if temperature_M.device.type != "cpu" or not bool((temperature_M == 1).all()):
        weight_MV = (shifted_MV / temperature_M[:, None]).clamp_(min=FLOOR).exp_()
    cumulated_MV = weight_MV.cumsum(dim=-1)
    total_M1 = cumulated_MV[:, -1:]
    token_M1 = torch.searchsorted(cumulated_MV, uniform_M[:, None] * total_M1)
    token_M1 = token_M1.clamp_(max=logits_MV.shape[-1] - 1)  # acts only on rows with NaN
    chosen_M1 = shifted_MV.gather(-1, token_M1)
    logprob_M1 = chosen_M1 / temperature_M[:, None] - total_M1.log()
    confidence_M1 = chosen_M1 - plain_MV.sum(dim=-1, keepdim=True).log()
    return Draw(token_M1[:, 0], logprob_M1[:, 0], confidence_M1[:, 0])
