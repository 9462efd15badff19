"""The table of rotary position embedding over (zero, row, column), for transformer.py.

Text tokens all have the position (0, 0, 0), for which the rotation is the identity.
"""

from functools import lru_cache

import torch
from torch import Tensor

THETA = 1e4


def rope_table(
    axes_dims: tuple[int, int, int], text_length: int, height: int, width: int, device: torch.device
) -> Tensor:
    """Cosines and sines of every position's rotation angles.

    Positions are `text_length` text tokens, then the `height` x `width` inner grid, row by row.
    Gives [L+N, head_dim/2, 2] in float32 (cosines first).
    """
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    image = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1)
    positions = torch.nn.functional.pad(image, (0, 0, text_length, 0)).double()
    angles = []
    for axis, dim in enumerate(axes_dims):
        exponents = torch.arange(0, dim, 2, device=device, dtype=torch.float64) / dim
        angles.append(positions[:, axis, None] * THETA**-exponents)
    angle = torch.cat(angles, dim=-1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


@lru_cache(maxsize=32)
def cached_rope_table(
    axes_dims: tuple[int, int, int], text_length: int, height: int, width: int, device: torch.device
) -> Tensor:
    """The same table, computed once a shape and device."""
    # A table made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return rope_table(axes_dims, text_length, height, width, device)
