"""What generators get wrong, done to tokens: pictures through the codes, clean and spoiled.

A ladder is one scene at three levels: decoded as it is, with some tokens wrong, with more wrong.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray

from cogrpo_core.shapes.render import render
from cogrpo_core.shapes.scenes import IMAGE_SIZE, Scene, Spec, sample_scene
from cogrpo_trainer.pretrain.codes import decode
from cogrpo_trainer.pretrain.data import training_spec
from cogrpo_trainer.pretrain.patches import PATCH, PatchTokenizer
from cogrpo_trainer.pretrain.rewards.damage import Bytes, box, some_object, visible

LEVELS = 3
GRID = IMAGE_SIZE // PATCH
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Ladders:
    """N scenes of compositions that are not held out, each at three levels of damage."""

    specs: list[Spec]
    images: Bytes
    """uint8 [N, 3, 64, 64, 3]."""


def make_ladders(vqvae: VQModel, number: int, seed: int) -> Ladders:
    """Ladders of `number` scenes, a function of the seed; not where the damage cannot be seen.

    Raises ValueError where it can be seen nowhere: the codes are not trained then.
    """
    rng = np.random.default_rng([seed, number])
    specs = [training_spec(rng) for _ in range(number)]
    scenes = [sample_scene(spec, rng) for spec in specs]
    tokenizer = PatchTokenizer(vqvae)
    clean = tokenizer(np.stack([render(scene) for scene in scenes]))
    codes = int(vqvae.config["num_vq_embeddings"])
    levels = np.empty((number, LEVELS, clean.shape[1]), np.int64)
    for i, scene in enumerate(scenes):
        donor = clean[int(rng.integers(number))]
        levels[i, 0] = clean[i]
        levels[i, 1] = spoil_tokens(clean[i], donor, scene, int(rng.integers(1, 5)), codes, rng)
        levels[i, 2] = spoil_tokens(
            levels[i, 1], donor, scene, int(rng.integers(3, 13)), codes, rng
        )
    pixels = decode_tokens(vqvae, levels.reshape(number * LEVELS, -1))
    images = pixels.reshape(number, LEVELS, IMAGE_SIZE, IMAGE_SIZE, 3)
    clear = [i for i in range(number) if _steps_are_visible(images[i])]
    if not clear:
        raise ValueError("wrong tokens change no picture: train the codes before the rewards")
    return Ladders([specs[i] for i in clear], images[clear])


def _steps_are_visible(levels: Bytes) -> bool:
    pictures = levels.astype(np.float32)
    return all(visible(a, b) for a, b in pairwise(pictures))


def spoil_tokens(
    tokens: Tokens,
    donor: Tokens,
    scene: Scene,
    number: int,
    codes: int,
    rng: np.random.Generator,
) -> Tokens:
    """Tokens [N] with `number` wrong ones, most of them in or beside an object.

    Wrong is a random code, a token of the donor's objects, the background's, or a neighbour's.
    """
    spoiled = tokens.copy()
    common = np.bincount(donor).argmax()
    objects_of_donor = donor[donor != common]
    rows, columns = box(some_object(scene, rng))
    for _ in range(number):
        y = int(rng.integers(rows.start, rows.stop)) // PATCH
        x = int(rng.integers(columns.start, columns.stop)) // PATCH
        if rng.random() < 0.15:
            y, x = (int(value) for value in rng.integers(0, GRID, 2))
        at = y * GRID + x
        before = spoiled[at]
        while spoiled[at] == before:
            kind = rng.random()
            if kind < 0.2:
                spoiled[at] = rng.integers(codes)
            elif kind < 0.6 and len(objects_of_donor):
                spoiled[at] = rng.choice(objects_of_donor)
            elif kind < 0.7:
                spoiled[at] = np.bincount(tokens).argmax()
            else:
                spoiled[at] = tokens[int(rng.integers(len(tokens)))]
                if rng.random() < 0.8:
                    dy, dx = rng.integers(-2, 3, 2)
                    row, column = np.clip((y + dy, x + dx), 0, GRID - 1)
                    spoiled[at] = tokens[row * GRID + column]
    return spoiled


@torch.no_grad()
def decode_tokens(vqvae: VQModel, tokens: Tokens) -> Bytes:
    """Pictures uint8 [B, 64, 64, 3] of tokens [B, N]."""
    parts = []
    for rows in torch.from_numpy(tokens).split(16):
        pixels = decode(vqvae, rows).clamp(0, 1).mul(255).round().to(torch.uint8)
        parts.append(pixels.permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)
