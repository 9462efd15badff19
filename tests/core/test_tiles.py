"""Decoding in tiles: exact for a decoder that looks at its token alone, and near for a VQ model."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cogrpo_core.images import decode_tokens
from cogrpo_core.models.checkpoint import load_checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.tiles import decode_in_tiles, fade, starts

SIDES = st.integers(1, 24)
TILES = st.integers(1, 16)


@settings(deadline=None)  # the first call of all sets torch up
@given(height=SIDES, width=SIDES, tile=TILES, scale=st.sampled_from([1, 2, 4]))
def test_where_a_token_is_its_pixels_tiles_are_the_whole(
    height: int, width: int, tile: int, scale: int
) -> None:
    def decode(tokens_BHW: Tensor) -> Tensor:
        assert max(tokens_BHW.shape[1:]) <= max(tile, 1)
        up_BHW = tokens_BHW.float().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        return up_BHW[:, None] * torch.tensor([1.0, 2.0, -3.0])[:, None, None]

    tokens = torch.randint(0, 100, (2, height, width), generator=torch.Generator().manual_seed(0))
    pixels = decode_in_tiles(decode, tokens, tile)
    assert pixels.shape == (2, 3, height * scale, width * scale)
    tile = max(height, width)
    torch.testing.assert_close(pixels, decode(tokens), rtol=1e-5, atol=1e-3)


@given(size=st.integers(1, 300), tile=TILES)
def test_tiles_cover_an_axis_and_stay_inside(size: int, tile: int) -> None:
    shared = tile // 4
    found = starts(size, tile, shared)
    covered = {at for start in found for at in range(start, start + min(tile, size))}
    assert covered == set(range(size))
    assert all(b - a <= tile - shared for a, b in pairwise(found))


def test_weights_rise_and_fall() -> None:
    assert fade(8, 2).tolist() == [0.25, 0.75, 1, 1, 1, 1, 0.75, 0.25]
    assert fade(3, 0).tolist() == [0.5, 1, 0.5]
    assert fade(5, 100).min() > 0


def test_a_vq_model_gives_nearly_the_same_picture() -> None:
    """Of a picture twice as large as a tile: norms over tiles differ, seams must not show."""
    vqvae = load_checkpoint("shapes").vqvae
    pipe = CoGRPOPipeline.from_pretrained("shapes")
    rows = pipe(["a red circle and a blue star"] * 4, seed=0, num_inference_steps=8)
    grid = rows.trajectories[0].grid_height, rows.trajectories[0].grid_width
    four = [each.tokens.reshape(grid) for each in rows.trajectories]
    tokens = torch.tensor(np.block([four[:2], four[2:]])).long()
    both = (2 * grid[0], 2 * grid[1])
    whole, tiled = (
        np.asarray(decode_tokens(vqvae, tokens.view(1, -1), both, tile=tile)[0])
        for tile in (None, grid[0])
    )
    whole, tiled = whole.astype(int), tiled.astype(int)
    difference = np.abs(whole - tiled)
    assert 0 < difference.mean() < 2 and np.percentile(difference, 99) < 16
    edges = [np.abs(np.diff(each, axis=1)).mean(axis=(0, 2)) for each in (whole, tiled)]
    assert np.abs(edges[0] - edges[1]).max() < 3


def test_a_picture_that_fits_a_tile_is_as_ever() -> None:
    pipe = CoGRPOPipeline.from_pretrained("shapes")
    (plain,) = pipe("a green ring", seed=3, num_inference_steps=4).images
    pipe.decode_tile = 16
    (same,) = pipe("a green ring", seed=3, num_inference_steps=4).images
    assert np.array_equal(np.asarray(plain), np.asarray(same))
    pipe.decode_tile = 8
    (other,) = pipe("a green ring", seed=3, num_inference_steps=4).images
    assert other.size == plain.size and not np.array_equal(np.asarray(plain), np.asarray(other))


def test_memory_is_that_of_a_tile() -> None:
    vqvae = load_checkpoint("shapes").vqvae
    tokens = torch.zeros(1, 64 * 64, dtype=torch.long)
    sides = []
    conv = vqvae.decoder.conv_out
    hook = conv.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[-1]))
    decode_tokens(vqvae, tokens, (64, 64), tile=16)
    hook.remove()
    assert set(sides) == {16 * 4} and len(sides) == 25
