"""Schedules found by search on training prompts: the best constants, and the best static table.

Both climb the weighted sum of the trained rewards, each standardised by the base model's spread.
Held-out prompts are never looked at.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cogrpo_core.models.schedule_policy import SchedulePolicy, SchedulePolicyConfig
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.rewards.composite import Composite
from cogrpo_core.schedule import ACTION_BOUNDS, ACTION_COLUMNS, ScheduleSpec, build_schedule
from cogrpo_trainer.train.config import TrainConfig
from cogrpo_trainer.train.prompts import Prompts

PROMPTS = 48
SEED = 900_000
KNOTS = 4  # of each action's residual over the steps
ELITE = 0.25  # of a generation's candidates
GENERATION = 10

Score = Callable[[ScheduleSpec], float]


def _scorer(pipe: CoGRPOPipeline, composite: Composite, config: TrainConfig) -> Score:
    """A function from a schedule to its score on fixed training prompts and seeds."""
    prompts = Prompts(config.prompts).draw(PROMPTS, seed=SEED, iteration=0)

    def rewards(schedule: ScheduleSpec) -> Mapping[str, Any]:
        images = pipe(
            prompts,
            seed=[SEED + i for i in range(PROMPTS)],
            schedule=schedule,
            num_inference_steps=config.num_inference_steps,
        ).images
        return composite.score(np.stack([np.asarray(i) for i in images]), prompts).by_reward

    base = rewards("meissonic")
    spread = {name: float(np.nanstd(base[name])) or 1.0 for name in config.rewards}

    def score(schedule: ScheduleSpec) -> float:
        found = rewards(schedule)
        parts = [
            weight * float(np.nanmean(found[name] - base[name])) / spread[name]
            for name, weight in config.rewards.items()
        ]
        return float(sum(parts))

    return score


def best_constant(
    pipe: CoGRPOPipeline, composite: Composite, config: TrainConfig, candidates: int
) -> dict[str, Any]:
    """Guidance, temperatures and the ratio's exponent, the same at every step, by random search."""
    score = _scorer(pipe, composite, config)
    defaults = pipe.checkpoint.generation
    rng = np.random.default_rng(SEED)
    steps = config.num_inference_steps
    best: tuple[float, dict[str, Any]] | None = None
    for number in range(candidates):
        gamma = 1.0 if number == 0 else float(np.exp(rng.uniform(np.log(0.6), np.log(3.0))))
        factor = np.ones(3) if number == 0 else np.exp(rng.normal(0, [0.2, 0.8, 0.4]))
        table = build_schedule(
            f"cosine-power:{gamma:.4f}",
            steps,
            guidance_scale=max(1.0, defaults.guidance_scale * factor[2]),
            remask_temperature=defaults.remask_temperature * factor[1],
        ).actions_T4
        table[:, 1] *= float(factor[0])
        schedule = _as_mapping(table)
        value = score(schedule)
        if best is None or value > best[0]:
            best = (value, schedule)
    assert best is not None
    return {"score": best[0], "candidates": candidates, "schedule": best[1]}


def best_static(pipe: CoGRPOPipeline, composite: Composite, config: TrainConfig) -> dict[str, Any]:
    """A table of actions step by step, by the cross-entropy method over residuals at four knots.

    It sees as many pictures as a training with these settings does.
    """
    score = _scorer(pipe, composite, config)
    defaults = pipe.checkpoint.generation
    steps = config.num_inference_steps
    base = build_schedule(
        "meissonic",
        steps,
        guidance_scale=defaults.guidance_scale,
        remask_temperature=defaults.remask_temperature,
    ).actions_T4
    policy = SchedulePolicy(SchedulePolicyConfig.for_width(8))  # for its residuals' scales
    low, high = torch.tensor(ACTION_BOUNDS).T
    pictures = config.iterations * config.schedule_phase.batch_size
    candidates = max(GENERATION, round(pictures / PROMPTS))
    rng = np.random.default_rng(SEED + 1)
    middle, spread = np.zeros((KNOTS, 4)), np.full((KNOTS, 4), 0.6)
    best = (-np.inf, base)
    at = np.linspace(0, 1, steps)
    for _ in range(max(1, candidates // GENERATION)):
        found = []
        for _ in range(GENERATION):
            knots = rng.normal(middle, spread)
            raw = np.stack(
                [np.interp(at, np.linspace(0, 1, KNOTS), knots[:, c]) for c in range(4)], axis=1
            )
            table = policy.apply_action(base, torch.tensor(raw, dtype=torch.float32))
            table = table.clamp(low, high)
            found.append((score(_as_mapping(table)), knots, table))
        found.sort(key=lambda each: -each[0])
        elite = np.stack([knots for _, knots, _ in found[: max(2, round(ELITE * GENERATION))]])
        middle, spread = elite.mean(0), 0.5 * spread + 0.5 * elite.std(0)
        if found[0][0] > best[0]:
            best = (found[0][0], found[0][2])
    return {"score": best[0], "candidates": candidates, "schedule": _as_mapping(best[1])}


def _as_mapping(table: torch.Tensor) -> dict[str, Any]:
    return {name: table[:, column].tolist() for column, name in enumerate(ACTION_COLUMNS)}
