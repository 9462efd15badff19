"""Rewards and checker over pictures of the same held-out prompts and seeds, and their gains.

Shape letters: B prompts.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cogrpo_core.inputs import MAX_IMAGES_PER_CALL
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.rewards.composite import Composite
from cogrpo_core.rewards.load import load_reward
from cogrpo_core.schedule import ScheduleSpec
from cogrpo_core.shapes.render import render
from cogrpo_core.shapes.scenes import sample_scene
from cogrpo_core.shapes.suites import Prompt, score, suite
from cogrpo_trainer.evaluate import Z, checkable

CHECKER = "checker"

Scores = dict[str, NDArray[np.float64]]
"""[B] for each reward and the checker."""


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def held_out_prompts(total: int) -> list[Prompt]:
    """About `total` prompts, as many of each of the six tasks and of long ones."""
    each = max(1, round(total / 7))
    return [*suite("geneval-shapes", each), *suite("long-shapes", each)]


def scorers(
    names: Iterable[str], timeout_s: float, device: torch.device | str = "cpu"
) -> Composite:
    """The rewards of these names, held out or not, for measuring."""
    rewards = [load_reward(name, device=str(device)) for name in names]
    return Composite(rewards, dict.fromkeys((r.name for r in rewards), 1.0), timeout_s)


def measure(
    pipe: CoGRPOPipeline,
    composite: Composite,
    prompts: Sequence[Prompt],
    *,
    schedule: ScheduleSpec | None,
    steps: int,
    seed: int = 0,
    batch_size: int = MAX_IMAGES_PER_CALL,
) -> Scores:
    """Scores of one picture a prompt; prompt i has the seed `seed` + i."""

    def batches() -> Iterator[list[Image.Image]]:
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            yield pipe(
                [prompt.text for prompt in part],
                seed=[seed + start + i for i in range(len(part))],
                schedule=schedule,
                num_inference_steps=steps,
            ).images

    return _scored(batches(), composite, prompts)


def measure_world(composite: Composite, prompts: Sequence[Prompt], *, seed: int = 0) -> Scores:
    """Scores of one scene a prompt, as the world draws it: what there is to reach."""
    rng = np.random.default_rng(seed)
    scenes = ([Image.fromarray(render(sample_scene(one.spec, rng)))] for one in prompts)
    return _scored(scenes, composite, prompts)


def _scored(
    batches: Iterable[Sequence[Image.Image]], composite: Composite, prompts: Sequence[Prompt]
) -> Scores:
    columns: dict[str, list[NDArray[np.float64]]] = {}
    start = 0
    for images in batches:
        part = prompts[start : start + len(images)]
        start += len(images)
        pixels = np.stack([np.asarray(image) for image in images])
        found = composite.score(pixels, [prompt.text for prompt in part]).by_reward
        checked = [
            score(prompt.task, prompt.spec, checkable(image))
            for prompt, image in zip(part, images, strict=True)
        ]
        for name, values in (found | {CHECKER: np.array(checked)}).items():
            columns.setdefault(name, []).append(np.asarray(values, np.float64))
    return {name: np.concatenate(values) for name, values in columns.items()}


def mean(values: NDArray[np.float64]) -> Mean:
    """The mean of the finite values, with the normal interval of its standard error."""
    fine = values[np.isfinite(values)]
    if len(fine) < 2:
        return Mean(float(fine.mean()) if len(fine) else math.nan, math.nan, math.nan, len(fine))
    middle, half = float(fine.mean()), Z * float(fine.std(ddof=1)) / math.sqrt(len(fine))
    return Mean(middle, middle - half, middle + half, len(fine))


def gains(after: Scores, before: Scores) -> Mapping[str, Mean]:
    """The paired differences, reward by reward: same prompts, same seeds."""
    return {name: mean(after[name] - before[name]) for name in after}
