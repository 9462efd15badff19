"""Decoding a large picture tile by tile: memory is then a tile's, and not the picture's.

Neighbours share a quarter of a tile, over which one fades into the other. A decoder's norms are
over what it is given, so pixels differ a little from those of a whole decode. images.py uses it.

Shape letters: B images, H W token grid, h w pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Decode = Callable[[Tensor], Tensor]
"""Tokens [B,H,W] to pixels [B,3,h,w], larger by one whole number on both axes."""


def decode_in_tiles(decode: Decode, tokens_BHW: Tensor, tile: int) -> Tensor:
    """Pixels [B,3,h,w] of tokens, decoded in squares of `tile` tokens, or at once if they fit."""
    height, width = tokens_BHW.shape[1:]
    if max(height, width) <= tile:
        return decode(tokens_BHW)
    shared = tile // 4
    sums: Tensor | None = None
    for top in starts(height, tile, shared):
        for left in starts(width, tile, shared):
            part_BHW = tokens_BHW[:, top : top + tile, left : left + tile]
            pixels = decode(part_BHW)
            scale = pixels.shape[-1] // part_BHW.shape[-1]
            weight_hw = torch.outer(
                *(fade(size, shared * scale).to(pixels) for size in pixels.shape[-2:])
            )
            if sums is None:  # of the colours, and of the weights behind them
                colours = pixels.shape[1] + 1
                sums = pixels.new_zeros(len(pixels), colours, height * scale, width * scale)
            y, x = top * scale, left * scale
            place = sums[..., y : y + pixels.shape[-2], x : x + pixels.shape[-1]]
            place[:, :-1] += pixels * weight_hw
            place[:, -1] += weight_hw
    assert sums is not None
    return sums[:, :-1] / sums[:, -1:]


def starts(size: int, tile: int, shared: int) -> list[int]:
    """Where tiles begin on an axis: next to each other but for `shared`, the last at the end."""
    if size <= tile:
        return [0]
    return sorted({min(at, size - tile) for at in range(0, size - shared, tile - shared)})


def fade(size: int, over: int) -> Tensor:
    """Weights [size] that rise from nearly 0 to 1 over as many pixels, and fall at the end."""
    at = torch.arange(size) + 0.5
    return (torch.minimum(at, size - at) / max(over, 1)).clamp(max=1.0)
