"""Time and memory of decoding a picture of Meissonic's VQ model, as a whole and in tiles."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import VQModel

from cogrpo_core.images import decode_tokens
from cogrpo_core.models import meissonic
from cogrpo_core.models.vqvae import VqConfig
from cogrpo_trainer.benchmarks.interleave import peak_bytes, timed

WHOLE = "whole"


def compare_decode(
    config: VqConfig = meissonic.VQVAE,
    *,
    device: torch.device,
    pixels: int,
    tile: int,
    images: int,
    rounds: int,
) -> dict[str, Any]:
    """Of `images` square pictures in one pass; the weights are random, what they cost is not.

    Raises ValueError unless `pixels` is a multiple of a token's.
    """
    if pixels % config.downscale:
        raise ValueError(f"--pixels {pixels} is no multiple of {config.downscale}, a token's side")
    side = pixels // config.downscale
    torch.manual_seed(0)
    with torch.device(device):
        vqvae = VQModel(**config.model_dump()).eval()
        tokens = torch.randint(0, config.num_vq_embeddings, (images, side * side))
    decode = partial(decode_tokens, vqvae, tokens, (side, side), images_per_pass=images)
    tiled = f"tiles of {tile}"
    variants: dict[str, Callable[[], object]] = {WHOLE: decode, tiled: partial(decode, tile=tile)}
    found = timed(variants, rounds)
    memory = {name: peak_bytes(run, device) for name, run in variants.items()}
    return {
        "device": str(device),
        "pixels": pixels,
        "tile": tile,
        "images": images,
        "seconds": found.seconds,
        "peak_bytes": memory,
        "memory": memory[tiled] / memory[WHOLE],
        "time": found.ratio(tiled, WHOLE),
    }
