"""Fresh training batches: captions and tokens of random pictures, masked as Meissonic does it.

A batch is a function of (seed, step) alone: a resumed run sees what an uninterrupted one would.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cogrpo_core.shapes.captions import caption
from cogrpo_core.shapes.render import render
from cogrpo_core.shapes.scenes import Spec, held_out, sample_scene, sample_spec
from cogrpo_trainer.pretrain.patches import PatchTokenizer

CAPTION_DROPOUT = 0.1
MAX_STEPS = 64  # the number of sampling steps that the time condition is drawn for


@dataclass(frozen=True)
class Batch:
    """B captions with the tokens of a picture each."""

    captions: list[str]
    tokens: Tensor
    """int64 [B, N]."""
    masked: Tensor
    """bool [B, N]: the tokens to predict."""
    timestep: Tensor
    """[B], steps remaining."""


def training_spec(rng: np.random.Generator) -> Spec:
    """A random spec of the training mixture that is not held out."""
    while held_out(spec := sample_spec(rng)):
        pass
    return spec


def make_batch(tokenizer: PatchTokenizer, size: int, *, seed: int, step: int) -> Batch:
    """The batch of `step`: compositions that are not held out, captions dropped for one in ten."""
    rng = np.random.default_rng([seed, step])
    captions: list[str] = []
    images: list[NDArray[np.uint8]] = []
    while len(captions) < size:
        spec = training_spec(rng)
        images.append(render(sample_scene(spec, rng)))
        captions.append("" if rng.random() < CAPTION_DROPOUT else caption(spec, rng))
    tokens = torch.from_numpy(tokenizer(np.stack(images)))
    share = np.cos(np.pi / 2 * rng.random(size))
    return Batch(captions, tokens, random_mask(share, tokens.shape[1], rng), _timesteps(size, rng))


def random_mask(share: np.ndarray, positions: int, rng: np.random.Generator) -> Tensor:
    """bool [B, N]: round(N * share) random positions of each row, at least one."""
    count = np.maximum(1, np.rint(positions * share))
    rank = rng.random((len(share), positions)).argsort(axis=1).argsort(axis=1)
    return torch.from_numpy(rank < count[:, None])


def _timesteps(size: int, rng: np.random.Generator) -> Tensor:
    """Steps remaining of a random sampler: any number of steps may meet any share of masks.

    So the model does not tie the time to one schedule, which a learned one would leave at once.
    """
    steps = rng.integers(4, MAX_STEPS + 1, size)
    return torch.from_numpy(np.floor(steps * rng.random(size)))
