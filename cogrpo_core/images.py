"""From tokens to pictures: VQ decoding, and PNG files that say what made them.

pipeline.py decodes with it; the command line and the server write its PNGs.

Shape letters: B images, N image tokens.
"""

import io

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cogrpo_core.models.vqvae import vq_config
from cogrpo_core.tiles import decode_in_tiles
from cogrpo_core.trajectory import Trajectory


@torch.no_grad()
def decode_tokens(
    vqvae: VQModel,
    tokens_BN: Tensor,
    grid: tuple[int, int],
    *,
    images_per_pass: int = 1,
    tile: int | None = None,
) -> list[Image.Image]:
    """RGB pictures of tokens [B,N] on a grid (rows, columns), a few at a time to bound memory.

    Larger ones than `tile` tokens a side are decoded in tiles.
    """
    config = vq_config(vqvae)
    latent_size = config.vq_embed_dim or config.latent_channels

    def decode(part_BHW: Tensor) -> Tensor:
        shape = (*part_BHW.shape, latent_size)
        pixels: Tensor = vqvae.decode(
            part_BHW.flatten(1), force_not_quantize=True, shape=shape
        ).sample
        return pixels.float()

    images: list[Image.Image] = []
    for part_BN in tokens_BN.split(images_per_pass):
        tokens_BHW = part_BN.to(vqvae.device).unflatten(1, grid)
        pixels = decode_in_tiles(decode, tokens_BHW, tile or max(grid))
        bytes_BHWC = pixels.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
        images += [Image.fromarray(np.asarray(image)) for image in bytes_BHWC.cpu().numpy()]
    return images


def decode_unfinished(
    vqvae: VQModel,
    tokens_N: Tensor,
    grid: tuple[int, int],
    *,
    mask_token_id: int,
    max_side: int,
    tile: int | None = None,
) -> Image.Image:
    """The picture of what is known of tokens [N], gray where they are masks, at most `max_side`."""
    masked_HW = (tokens_N == mask_token_id).view(grid)
    known_1N = tokens_N.masked_fill(tokens_N == mask_token_id, 0)[None]
    (image,) = decode_tokens(vqvae, known_1N, grid, tile=tile)
    unknown = Image.fromarray(masked_HW.cpu().numpy()).resize(image.size, Image.Resampling.NEAREST)
    image.paste((128, 128, 128), mask=unknown)
    image.thumbnail((max_side, max_side))
    return image


def png_bytes(image: Image.Image, trajectory: Trajectory, *, scale_up: int = 1) -> bytes:
    """The picture as PNG, each pixel `scale_up` times as large, with text chunks of its origin."""
    info = PngInfo()
    for key, value in {
        "prompt": trajectory.prompt,
        "negative_prompt": trajectory.negative_prompt,
        "seed": trajectory.seed,
        "steps": trajectory.num_steps,
        "schedule": trajectory.schedule,
        "model": trajectory.model,
        "policy_version": trajectory.policy_version,
    }.items():
        info.add_itxt(key, str(value))
    if scale_up > 1:
        size = (image.width * scale_up, image.height * scale_up)
        image = image.resize(size, Image.Resampling.NEAREST)
    return encode_png(image, info)


def encode_png(image: Image.Image, info: PngInfo | None = None) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
