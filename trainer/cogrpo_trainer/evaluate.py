"""Scores a generator on a suite of held-out prompts, with 95 % intervals.

The prompts and their judge are cogrpo_core's (shapes/suites.py); `cli.py` prints what comes out,
`grid.py` draws it.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cogrpo_core.models.checkpoint import load_checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.shapes.scenes import IMAGE_SIZE
from cogrpo_core.shapes.suites import Prompt, score

Z = 1.959964  # of the normal distribution: 95 % lie within
SEEDS = 2**32

Generate = Callable[[list[str], list[int]], Sequence[Image.Image]]
"""Pictures of prompts, one each, from one seed each."""


class EvaluationError(ValueError):
    """An evaluation that cannot be done."""


@dataclass(frozen=True)
class Settings:
    """How the pipeline is called; None is the checkpoint's default."""

    num_inference_steps: int | None = None
    schedule: str | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Sample:
    """A picture that was made for a prompt, and its score in [0, 1]."""

    prompt: Prompt
    seed: int
    image: Image.Image
    score: float


@dataclass(frozen=True)
class Interval:
    """A mean score of `n` pictures and its 95 % interval."""

    score: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Report:
    """What `cogrpo evaluate` prints."""

    suite: str
    steps: int
    schedule: str
    model: str
    tasks: dict[str, Interval]
    overall: Interval

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, its numbers rounded to four places."""
        plain = asdict(self)
        for row in (*plain["tasks"].values(), plain["overall"]):
            row.update({name: round(row[name], 4) for name in ("score", "low", "high")})
        return plain


def run_suite(
    prompts: Sequence[Prompt],
    generate: Generate,
    *,
    seed: int = 0,
    batch_size: int = 16,
    on_progress: Callable[[int], None] = lambda made: None,
) -> list[Sample]:
    """Makes and judges one picture a prompt; prompt i has the seed `seed` + i modulo 2^32.

    `on_progress` is told how many pictures each batch made.
    """
    seeds = [(seed + i) % SEEDS for i in range(len(prompts))]
    samples = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        batch_seeds = seeds[start : start + batch_size]
        images = generate([prompt.text for prompt in batch], batch_seeds)
        for prompt, image_seed, image in zip(batch, batch_seeds, images, strict=True):
            value = score(prompt.task, prompt.spec, checkable(image))
            samples.append(Sample(prompt, image_seed, image, value))
        on_progress(len(batch))
    return samples


def checkable(image: Image.Image) -> np.ndarray:
    """The picture as the checker takes it, uint8 [64, 64, 3]; whole multiples are averaged down.

    Raises `EvaluationError` for other sizes.
    """
    check_size(image.height, image.width)
    return np.asarray(image.convert("RGB").reduce(image.width // IMAGE_SIZE))


def check_size(height: int, width: int) -> None:
    """Raises `EvaluationError` unless the suites can judge pictures of this size."""
    if height != width or width < IMAGE_SIZE or width % IMAGE_SIZE:
        raise EvaluationError(
            f"the model makes {height}x{width} pixels, but the suites judge "
            f"{IMAGE_SIZE}x{IMAGE_SIZE} and whole multiples of it"
        )


def summarize(samples: Sequence[Sample]) -> tuple[dict[str, Interval], Interval]:
    """Mean and interval of each task, and of all tasks together."""
    by_task: dict[str, list[float]] = {}
    for sample in samples:
        by_task.setdefault(sample.prompt.task, []).append(sample.score)
    tasks = {task: wilson(scores) for task, scores in by_task.items()}
    return tasks, stratified(list(tasks.values()))


def wilson(scores: Sequence[float]) -> Interval:
    """The mean of scores in [0, 1] and its Wilson interval.

    For scores between 0 and 1 the interval is that of a share with this mean: no distribution on
    [0, 1] varies more than a share does, so that it is wide enough.
    """
    n, mean = len(scores), float(np.mean(scores))
    middle = mean + Z**2 / (2 * n)
    spread = Z * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    whole = 1 + Z**2 / n
    low, high = (middle - spread) / whole, (middle + spread) / whole
    return Interval(mean, min(max(0.0, low), mean), max(min(1.0, high), mean), n)


def stratified(tasks: Sequence[Interval]) -> Interval:
    """The unweighted mean of the tasks; each task is a stratum.

    The tasks' errors are independent, so the distances from each score to the ends of its interval
    add up in squares: mean -+ sqrt(sum distance^2) / number of tasks (Newcombe's square-and-add).
    """
    number = len(tasks)
    mean = sum(task.score for task in tasks) / number
    below = math.sqrt(sum((task.score - task.low) ** 2 for task in tasks)) / number
    above = math.sqrt(sum((task.high - task.score) ** 2 for task in tasks)) / number
    return Interval(mean, mean - below, mean + above, sum(task.n for task in tasks))


def prompted(pipe: CoGRPOPipeline, settings: Settings, workers: int = 1) -> Generate:
    """The pipeline as a generator for `run_suite`.

    Several `workers` (for a CPU) make pictures side by side, each on one core. That is faster than
    all cores on one small picture, and gives the same pictures on any number of cores.
    """
    if workers == 1:
        return lambda texts, seeds: pipe(texts, seed=seeds, **asdict(settings)).images

    def picture(text: str, seed: int) -> Image.Image:
        return pipe(text, seed=seed, **asdict(settings)).images[0]

    def generate(texts: list[str], seeds: list[int]) -> list[Image.Image]:
        threads = torch.get_num_threads()
        one_core = partial(torch.set_num_threads, 1)
        try:
            with ThreadPoolExecutor(workers, initializer=one_core) as pool:
                return list(pool.map(picture, texts, seeds))
        finally:
            torch.set_num_threads(threads)

    return generate


def load_pipeline(
    model: str,
    *,
    device: str,
    remask_temperature: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> CoGRPOPipeline:
    """The model's pipeline, if wanted with another re-mask temperature to start from."""
    checkpoint = load_checkpoint(model, dtype=dtype, device=device)
    if remask_temperature is not None:
        changed = {"remask_temperature": remask_temperature}
        generation = checkpoint.generation.model_copy(update=changed)
        checkpoint = replace(checkpoint, generation=generation)
    return CoGRPOPipeline(checkpoint)


def save_images(samples: Sequence[Sample], folder: Path) -> None:
    """Writes each picture as TASK-NUMBER-pass.png or -fail.png; the number counts all prompts."""
    for i, sample in enumerate(samples):
        outcome = "pass" if sample.score == 1.0 else "fail"
        sample.image.save(folder / f"{sample.prompt.task}-{i:04d}-{outcome}.png")
