"""Trains `shapes-quality`: Bradley-Terry over pictures of known levels of damage.

P(a before b) = sigmoid(score(a) - score(b)) for every pair of a batch in which a is less damaged
(as a preference model is trained, arXiv 2306.09341), and for every clean picture, asked for in its
own style against another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cogrpo_core.rewards.quality import QualityConfig, QualityNet
from cogrpo_core.rewards.reward import Images, to_input
from cogrpo_core.shapes.render import render
from cogrpo_core.shapes.scenes import STYLES, Spec, sample_scene
from cogrpo_trainer.pretrain.codes import one_cycle
from cogrpo_trainer.pretrain.data import training_spec
from cogrpo_trainer.pretrain.rewards.codes_damage import LEVELS, Ladders, make_ladders
from cogrpo_trainer.pretrain.rewards.damage import damaged, mild_noise
from cogrpo_trainer.pretrain.rewards.negatives import other_style
from cogrpo_trainer.pretrain.state import load_state, save_state

Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class QualityTraining:
    """Budget and optimiser."""

    steps: int = 1_200
    scenes: int = 16  # a batch, each at three levels of damage
    ladders: int = 800  # scenes that went through the codes, made before training
    rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 3


@dataclass(frozen=True)
class Levels:
    """Pictures with their damage, and the styles that each could be asked for."""

    images: Images
    """uint8 [B, 64, 64, 3]."""
    level: Tensor
    """int64 [B]: 0 is clean."""
    style: Tensor
    """int64 [B]: index of the style that it is drawn in."""
    other: Tensor
    """int64 [B]: index of a style that a clean picture is clearly not drawn in."""


def train_quality(
    config: QualityConfig,
    training: QualityTraining,
    vqvae: VQModel,
    folder: Path,
    report: Report,
    *,
    save_every: int = 200,
) -> QualityNet:
    """Trains to `training.steps`, or goes on from the state in `folder`.

    `report(step, values)` is called every 25 steps.
    """
    torch.manual_seed(training.seed)
    model = QualityNet(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.rate, weight_decay=training.weight_decay
    )
    first = load_state(folder, {"quality": model}, [optimizer])
    if first < training.steps:
        ladders = make_ladders(vqvae, training.ladders, training.seed)
    for step in range(first, training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate * one_cycle(step, training.steps)
        batch = make_levels(ladders, training.scenes, seed=training.seed, step=step)
        loss, right = preference(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % 25 == 0:
            report(done, {"loss": float(loss.detach()), "right_pairs": right})
        if done % save_every == 0 or done == training.steps:
            save_state(folder, done, {"quality": model}, [optimizer])
    return model.eval()


def make_levels(ladders: Ladders, scenes: int, *, seed: int, step: int) -> Levels:
    """The batch of `step`: half of the scenes from the ladders, half drawn and damaged anew."""
    rng = np.random.default_rng([seed, step])
    images: list[NDArray[np.uint8]] = []
    specs: list[Spec] = []
    for i in rng.integers(len(ladders.specs), size=scenes // 2):
        images.extend(ladders.images[i])
        specs.append(ladders.specs[i])
    while len(specs) < scenes:
        spec = training_spec(rng)
        scene = sample_scene(spec, rng)
        clean = render(scene)
        donor = images[int(rng.integers(len(images)))]
        little = damaged(clean, scene, donor, 1, rng)
        images += [clean, little, damaged(little, scene, donor, int(rng.integers(1, 4)), rng)]
        specs.append(spec)
    noisy = np.stack([mild_noise(image, rng) for image in images])
    if rng.random() < 0.5:
        noisy = np.ascontiguousarray(noisy[:, :, ::-1])
    styles = [STYLES.index(spec.style) for spec in specs]
    others = [STYLES.index(other_style(spec, rng)) for spec in specs]
    return Levels(
        noisy,
        torch.arange(LEVELS).repeat(scenes),
        torch.tensor(styles).repeat_interleave(LEVELS),
        torch.tensor(others).repeat_interleave(LEVELS),
    )


def preference(model: QualityNet, batch: Levels) -> tuple[Tensor, float]:
    """The loss of a batch, and the share of pairs that are ordered right."""
    four = model(to_input(batch.images))  # [B, 4]
    own = four.gather(1, batch.style[:, None]).squeeze(1)
    other = four.gather(1, batch.other[:, None]).squeeze(1)
    better = batch.level[:, None] < batch.level[None, :]
    margins = (own[:, None] - own[None, :])[better]
    clean = batch.level == 0
    style_margins = (own - other)[clean]
    loss = F.softplus(-margins).mean() + 0.5 * F.softplus(-style_margins).mean()
    return loss, float((margins.detach() > 0).float().mean())


@torch.no_grad()
def affine(model: QualityNet, ladders: Ladders) -> tuple[float, float]:
    """(scale, offset) by which clean pictures score 1 and the most damaged -1 in the mean."""
    means = []
    for level in (0, LEVELS - 1):
        four = model(to_input(ladders.images[:, level]))
        styles = torch.tensor([STYLES.index(spec.style) for spec in ladders.specs])
        means.append(float(four.gather(1, styles[:, None]).mean()))
    scale = 2 / max(means[0] - means[1], 1e-6)
    return scale, 1 - scale * means[0]
