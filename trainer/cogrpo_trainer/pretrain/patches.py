"""Pictures as rows of 4x4 patches, and a tokenizer that encodes equal patches once."""

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray

PATCH = 4
VALUES = PATCH * PATCH * 3


def to_patches(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [B, H, W, 3] -> uint8 [B, N, 48], rows first."""
    batch, height, width, _ = images.shape
    grid = images.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    return np.ascontiguousarray(grid.transpose(0, 1, 3, 2, 4, 5)).reshape(batch, -1, VALUES)


def unique_patches(
    patches: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.intp], NDArray[np.intp]]:
    """(distinct rows [U, 48], index of each row in them, count of each)."""
    keys = np.ascontiguousarray(patches.reshape(-1, VALUES)).view(f"V{VALUES}").ravel()
    distinct, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return distinct.view(np.uint8).reshape(-1, VALUES), inverse, counts


def as_images(patches: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [U, 48] -> float [U, 3, 4, 4] in [0, 1]."""
    tensor = torch.from_numpy(patches).float().div_(255)
    return tensor.view(-1, PATCH, PATCH, 3).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def encode_patches(vqvae: VQModel, patches: NDArray[np.uint8], chunk: int = 4096) -> torch.Tensor:
    """The encoder's latents of patches [U, 48], each patch a picture of its own: float [U, C]."""
    parts = [vqvae.encode(as_images(rows)).latents.flatten(1) for rows in _chunks(patches, chunk)]
    return torch.cat(parts)


def _chunks(rows: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest code [K, C] of each latent [U, C]."""
    parts = [
        (codebook.square().sum(1) - 2 * rows @ codebook.T).argmin(1) for rows in latents.split(8192)
    ]
    return torch.cat(parts)


class PatchTokenizer:
    """Pictures to tokens through a VQModel whose encoder sees one patch at a time.

    The world has few distinct patches, so their codes are kept and each is computed once.
    """

    def __init__(self, vqvae: VQModel) -> None:
        self.vqvae = vqvae
        self.codebook = vqvae.quantize.embedding.weight.detach().float()
        self.known: dict[bytes, int] = {}

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """uint8 [B, H, W, 3] -> tokens int64 [B, N]."""
        distinct, inverse, _ = unique_patches(to_patches(images))
        keys = [row.tobytes() for row in distinct]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            codes = nearest_codes(encode_patches(self.vqvae, distinct[new]), self.codebook)
            self.known.update(zip((keys[i] for i in new), codes.tolist(), strict=True))
        codes_of_distinct = np.array([self.known[key] for key in keys])
        return codes_of_distinct[inverse].reshape(len(images), -1)
