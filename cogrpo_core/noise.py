"""Counter-based noise: a function of (seed, step, position, stream) and of nothing else.

Philox4x32-10 with the key and counter words that Triton's `tl.philox` takes, so that a kernel can
draw the same numbers: kernels/noise_triton.py does. `denoise.py` is the only reader.

Shape letters: B samples, N image tokens.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

STREAM_SAMPLE = 0  # the token draw
STREAM_REMASK = 1  # the Gumbel noise of the kept set
STREAM_ACTION = 2  # the exploration of a scheduling policy

_MASK32 = 0xFFFFFFFF
_MULTIPLIER_A, _MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
_WEYL_A, _WEYL_B = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    """Four 32-bit random words for every counter (Salmon et al. 2011, Philox4x32-10).

    `counter` holds four broadcastable int64 tensors with values below 2^32; `seed` is an int64
    tensor whose low and high halves are the two key words. The words come back as int64 in [0,
    2^32).
    """
    if seed.device.type != "cpu":
        return _philox(*counter, seed)
    # NumPy takes a third of the time for the many operations on few numbers.
    with np.errstate(over="ignore"):
        words = _philox(*(each.numpy().view(np.uint64) for each in (*counter, seed)))
    return tuple(torch.from_numpy(np.asarray(word).view(np.int64)) for word in words)


def _philox(c0: Any, c1: Any, c2: Any, c3: Any, seed: Any) -> tuple[Any, ...]:
    """The rounds, on int64 tensors or on uint64 arrays."""
    key0, key1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(_ROUNDS):
        # A product wraps, but its 64 bits are right, and masks read both halves.
        product_a, product_b = c0 * _MULTIPLIER_A, c2 * _MULTIPLIER_B
        c0, c1 = ((product_b >> 32) & _MASK32) ^ c1 ^ key0, product_b & _MASK32
        c2, c3 = ((product_a >> 32) & _MASK32) ^ c3 ^ key1, product_a & _MASK32
        key0, key1 = (key0 + _WEYL_A) & _MASK32, (key1 + _WEYL_B) & _MASK32
    return c0, c1, c2, c3


def to_uniform(words: Tensor) -> Tensor:
    """Float32 values in the open interval (0, 1) of 32-bit words: the middles of 2^23 cells."""
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def to_gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log(u)), float32, finite for every u that `to_uniform` gives."""
    return -torch.log(-torch.log(uniform))


def uniform_noise(seed_B: Tensor, step_B: Tensor, count: int, streams: tuple[int, ...]) -> Tensor:
    """Uniform noise [len(streams), B, count]; entry (k, b, n) is position n of stream `streams[k]`.

    The counter is (position, step, stream, 0), and the first word is used.
    """
    device = seed_B.device
    position = torch.arange(count, device=device, dtype=torch.int64)
    stream = torch.tensor(streams, dtype=torch.int64).to(device, non_blocking=True)
    counter = (position, step_B[None, :, None], stream[:, None, None], torch.zeros_like(position))
    return to_uniform(philox_4x32(counter, seed_B[None, :, None])[0])


def step_noise(seed_B: Tensor, step_B: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """One step's noise: uniforms [B,N] for the token draw, Gumbel noise [B,N] for the re-mask."""
    uniform_SBN = uniform_noise(seed_B, step_B, num_tokens, (STREAM_SAMPLE, STREAM_REMASK))
    return uniform_SBN[0], to_gumbel(uniform_SBN[1])


def action_noise(seed_B: Tensor, step_B: Tensor, count: int) -> Tensor:
    """Standard normal noise [B, count] for exploring actions (Box-Muller), float32."""
    uniform_B2n = uniform_noise(seed_B, step_B, 2 * count, (STREAM_ACTION,))[0]
    radius, angle = uniform_B2n[:, :count], uniform_B2n[:, count:]
    return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(2.0 * math.pi * angle)
