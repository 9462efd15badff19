"""The choice of what is kept as one Triton kernel, a program a sample; remask.py is the definition.

The k-th smallest noisy confidence is found bit by bit, from the highest, in integers that are
ordered as the floats are: 32 counts over registers, no sort. All comparisons are the definition's,
so given the same confidence and noise the result is equal to the bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cogrpo_core.kernels.remask import Filled
from cogrpo_core.kernels.sample import Draw


@triton.jit
def ordered(value):
    """uint32 in the order of float32 values, with one zero and with NaN above all."""
    # An addition of zero would be folded away, and a comparison of -0.0 with 0.0 is not.
    value = tl.where(value == 0.0, 0.0, value)
    bits = value.to(tl.uint32, bitcast=True)
    negative = (bits >> 31) != 0
    key = tl.where(negative, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(value == value, key, 0xFFFFFFFF)


@triton.jit
def load_keys(masked_ptr, confidence_ptr, gumbel_ptr, position, inside, row, temperature):
    """(key, masked, row) at positions of one sample; `row` is the draw's before the first one."""
    masked = tl.load(masked_ptr + position, mask=inside, other=0) != 0
    row = row + tl.cumsum(masked.to(tl.int32), axis=0)
    confidence = tl.load(confidence_ptr + row, mask=masked, other=float("inf"))
    gumbel = tl.load(gumbel_ptr + position, mask=masked, other=0.0)
    key = ordered(confidence + temperature * gumbel)
    return tl.where(inside, key, 0xFFFFFFFF), masked, row


@triton.jit
def fill_kernel(
    tokens_ptr,
    fill_step_ptr,
    logprob_ptr,
    masked_ptr,
    drawn_ptr,
    drawn_logprob_ptr,
    confidence_ptr,
    first_ptr,
    gumbel_ptr,
    temperature_ptr,
    count_ptr,
    step_ptr,
    tokens_out_ptr,
    fill_step_out_ptr,
    logprob_out_ptr,
    num_tokens,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    start = sample * num_tokens
    temperature = tl.load(temperature_ptr + sample)
    row = tl.load(first_ptr + sample).to(tl.int32) - 1
    everywhere = tl.arange(0, BLOCK)
    keys, _, _ = load_keys(
        masked_ptr + start,
        confidence_ptr,
        gumbel_ptr + start,
        everywhere,
        everywhere < num_tokens,
        row,
        temperature,
    )
    # `rank` counts down to the number of positions that hold the k-th smallest key and are taken.
    rank = tl.load(count_ptr + sample).to(tl.int32)
    kth = tl.full((), 0, tl.uint32)
    one = tl.full((), 1, tl.uint32)
    bit = tl.full((), 31, tl.uint32)
    for _ in range(32):
        zeros = tl.sum(((keys >> bit) == (kth >> bit)).to(tl.int32))
        kth = tl.where(rank > zeros, kth | (one << bit), kth)
        rank = tl.where(rank > zeros, rank - zeros, rank)
        bit = bit - 1

    # Part by part and from the start again: whole rows of all columns would not fit into registers.
    step = tl.load(step_ptr + sample)
    for part in range(0, num_tokens, PART):
        position = part + tl.arange(0, PART)
        inside = position < num_tokens
        key, masked, rows = load_keys(
            masked_ptr + start,
            confidence_ptr,
            gumbel_ptr + start,
            position,
            inside,
            row,
            temperature,
        )
        equal = key == kth
        again = (key < kth) | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= rank))
        row += tl.sum(masked.to(tl.int32))
        rank -= tl.sum(equal.to(tl.int32))
        kept = masked & (again == 0)
        known = inside & (kept == 0)
        at = start + position
        token = tl.load(drawn_ptr + rows, mask=kept, other=0)
        old_token = tl.load(tokens_ptr + at, mask=known, other=0)
        tl.store(tokens_out_ptr + at, tl.where(kept, token, old_token), mask=inside)
        old_step = tl.load(fill_step_ptr + at, mask=known, other=0)
        tl.store(fill_step_out_ptr + at, tl.where(kept, step, old_step), mask=inside)
        logprob = tl.load(drawn_logprob_ptr + rows, mask=kept, other=0.0)
        old_logprob = tl.load(logprob_ptr + at, mask=known, other=0.0)
        tl.store(logprob_out_ptr + at, tl.where(kept, logprob, old_logprob), mask=inside)


def tile(num_tokens: int) -> dict[str, int | bool]:
    """The launch for N tokens. No fused multiply-add: the definition rounds the product too."""
    padded = max(128, triton.next_power_of_2(num_tokens))
    warps = max(4, min(16, padded // 512))
    part = min(padded, 128 * warps)
    return {"BLOCK": padded, "PART": part, "num_warps": warps, "enable_fp_fusion": False}


def fill_surest(
    known: Filled,
    masked_BN: Tensor,
    draw: Draw,
    gumbel_BN: Tensor,
    temperature_B: Tensor,
    count_B: Tensor,
    step_B: Tensor,
) -> Filled:
    """`remask.fill_surest` for N up to `ops.MAX_ROW`."""
    batch, num_tokens = masked_BN.shape
    new = Filled(*(torch.empty_like(column.contiguous()) for column in known))
    masked_B = masked_BN.sum(dim=1)
    if masked_BN.numel():
        fill_kernel[(batch,)](
            *(column.contiguous() for column in known),
            masked_BN.contiguous().view(torch.uint8),
            draw.token_M,
            draw.logprob_M,
            draw.confidence_M,
            masked_B.cumsum(dim=0) - masked_B,
            gumbel_BN.contiguous(),
            temperature_B.contiguous(),
            count_B.contiguous(),
            step_B.contiguous(),
            *new,
            num_tokens,
            **tile(num_tokens),
        )
    return new
