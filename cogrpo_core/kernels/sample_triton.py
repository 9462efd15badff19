"""The draw of tokens as one Triton kernel, a program a row; sample.py is the definition.

The row is read once, into registers, as a tile of BLOCKS x BLOCK codes. The inverse CDF has two
levels: sums of blocks in float32, cumulated in float64; then the codes of the one block that holds
the token. So only BLOCKS + BLOCK numbers are cumulated, and nothing of length V is written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cogrpo_core.kernels.sample import Draw

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sample_kernel(
    logits_ptr,
    temperature_ptr,
    uniform_ptr,
    token_ptr,
    logprob_ptr,
    confidence_ptr,
    num_codes,
    row_stride,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    column = tl.arange(0, BLOCK)
    code = block[:, None] * BLOCK + column[None, :]
    logits_row = logits_ptr + row * row_stride
    logits = tl.load(logits_row + code, mask=code < num_codes, other=-float("inf")).to(tl.float32)
    high = tl.max(logits)
    temperature = tl.load(temperature_ptr + row)
    scale = LOG2_E / temperature
    plain_total = tl.full((), 0.0, tl.float32)
    if temperature != 1.0:
        plain_total = tl.sum(tl.exp2((logits - high) * LOG2_E))
    block_sum = tl.sum(tl.exp2((logits - high) * scale), axis=1).to(tl.float64)
    cumulated = tl.cumsum(block_sum, axis=0)
    # Rounded as the definition's cumulated weights are, so that both compare the same numbers.
    total = tl.sum(tl.where(block == BLOCKS - 1, cumulated, 0.0)).to(tl.float32)
    plain_total = tl.where(temperature == 1.0, total, plain_total)
    threshold = tl.load(uniform_ptr + row) * total
    hit = tl.min(tl.where(cumulated.to(tl.float32) >= threshold, block, BLOCKS - 1))
    before = tl.sum(tl.where(block < hit, block_sum, 0.0))

    # The block's codes are read again, from a cache: to keep all weights would take the registers
    # of a second row.
    inside = hit * BLOCK + column
    inner_logits = tl.load(logits_row + inside, mask=inside < num_codes, other=-float("inf"))
    inner = tl.exp2((inner_logits.to(tl.float32) - high) * scale)
    reached = (before + tl.cumsum(inner.to(tl.float64), axis=0)).to(tl.float32) >= threshold
    first = tl.min(tl.where(reached & (inner > 0), column, BLOCK))
    # The two levels may round differently at a block's end: then its last possible code is taken.
    last = tl.max(tl.where(inner > 0, column, 0))
    token = hit * BLOCK + tl.where(first < BLOCK, first, last)
    # A row that is no distribution has NaN in its total, and so in what is written below.
    token = tl.where(total == total, token, num_codes - 1)

    chosen = tl.load(logits_row + token).to(tl.float32) - high
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(logprob_ptr + row, chosen / temperature - tl.log(total))
    tl.store(confidence_ptr + row, chosen - tl.log(plain_total))


def tile(num_codes: int) -> dict[str, int]:
    """The launch for rows of V codes: a tile that holds the row, about 32 codes a thread."""
    padded = max(256, triton.next_power_of_2(num_codes))
    return {"BLOCKS": padded // 128, "BLOCK": 128, "num_warps": max(4, padded // 1024)}


def sample_tokens(logits_MV: Tensor, sample_temperature_M: Tensor, uniform_M: Tensor) -> Draw:
    """`sample.sample_tokens` for V up to `ops.MAX_ROW`."""
    rows, codes = logits_MV.shape
    if logits_MV.stride(1) != 1:
        logits_MV = logits_MV.contiguous()
    token_M = torch.empty(rows, dtype=torch.int64, device=logits_MV.device)
    logprob_M = torch.empty(rows, dtype=torch.float32, device=logits_MV.device)
    confidence_M = torch.empty_like(logprob_M)
    if rows:
        sample_kernel[(rows,)](
            logits_MV,
            sample_temperature_M.contiguous(),
            uniform_M.contiguous(),
            token_M,
            logprob_M,
            confidence_M,
            codes,
            logits_MV.stride(0),
            **tile(codes),
        )
    return Draw(token_M, logprob_M, confidence_M)
