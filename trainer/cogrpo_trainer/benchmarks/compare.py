"""Sampler and learner against the straightforward way (baseline.py): time, memory, same results."""

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogrpo_core.grpo.batch import (
    TrajectoryBatch,
    all_steps,
    collate,
    distinct_passes,
    pick_steps,
)
from cogrpo_core.grpo.likelihood import token_likelihood
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.trajectory import Trajectory
from cogrpo_trainer.benchmarks import baseline
from cogrpo_trainer.benchmarks.interleave import peak_bytes, timed
from cogrpo_trainer.train.conditions import Conditions
from cogrpo_trainer.train.learner import passes_of

PROMPT = "a red circle left of a blue square"
PROMPTS = (PROMPT, "three green stars", "a large yellow ring", "two purple hearts")
PASS = 16
"""Steps of the straightforward learner's pass."""


def compare_sampler(
    pipe: CoGRPOPipeline, *, steps: int, images: int, rounds: int
) -> dict[str, Any]:
    """Denoising of `images` pictures, from conditions to tokens; the text is encoded before.

    Both draw from other noise, so their tokens cannot be compared one by one: `logits_gap` is the
    largest difference between both ways' guided logits of one state.
    """
    defaults = pipe.checkpoint.generation
    jobs = pipe.plan(
        PROMPT,
        num_images_per_prompt=images,
        num_inference_steps=steps,
        schedule="meissonic",
        seed=0,
    )
    conditions = pipe.condition(jobs)
    model, grid = pipe.checkpoint.transformer, pipe.grid(jobs[0])
    encoded = copy(pipe)
    encoded.condition = lambda jobs: conditions  # type: ignore[method-assign]

    def straightforward() -> None:
        with baseline.definitions():
            baseline.sample(
                model,
                *conditions,
                grid=grid,
                num_steps=steps,
                guidance=defaults.guidance_scale,
                temperature=defaults.remask_temperature,
                seed=0,
            )

    def ours() -> None:
        encoded.generate(jobs)

    found = timed({"straightforward": straightforward, "cogrpo": ours}, rounds)
    return {
        "seconds": found.seconds,
        "faster": found.ratio("straightforward", "cogrpo"),
        "logits_gap": _logits_gap(pipe, conditions, grid),
    }


@torch.no_grad()
def _logits_gap(pipe: CoGRPOPipeline, conditions: Any, grid: tuple[int, int]) -> float:
    model = pipe.checkpoint.transformer
    conditional = conditions[0].select([0])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.codebook_size, (1, *grid), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < 0.6] = model.config.mask_token_id
    tokens, time = tokens.to(pipe.device), torch.tensor([3], device=pipe.device)
    position = (tokens.flatten() == model.config.mask_token_id).nonzero()[:, 0]
    ours = model.head(model.hidden_at(tokens, time, conditional, position))
    with baseline.definitions():
        plain = baseline.all_logits(model, tokens, time, conditional)
    return float((ours - plain.flatten(0, 1)[position]).abs().max())


@dataclass(frozen=True)
class _Task:
    """Steps to learn from, and the weight of each one's log-probability in the loss."""

    pipe: CoGRPOPipeline
    batch: TrajectoryBatch
    conditions: Conditions
    sample_S: Tensor
    step_S: Tensor
    weight_S: Tensor

    def straightforward(self, size: int) -> None:
        """Gradients of the weighted sum, by full logits, `size` steps a pass."""
        model = self.pipe.checkpoint.transformer
        for index in torch.arange(len(self.step_S)).split(size):
            steps = self._steps(index)
            with baseline.definitions():
                rows = self.conditions.rows(model, steps.sample_M)
                logprob_MN, filled_MN = baseline.logprobs(model, steps, *rows)
                (logprob_MN * filled_MN * self.weight_S[index, None]).sum().backward()

    def cogrpo(self, size: int) -> None:
        """The same gradients as the learner takes them, `size` different states a pass."""
        model = self.pipe.checkpoint.transformer
        for index in passes_of(self.batch, self.sample_S, self.step_S, self.conditions, size):
            steps = self._steps(index)
            rows = self.conditions.rows(model, steps.sample_M)
            distinct = distinct_passes(steps, self.conditions.texts(steps.sample_M))
            found = token_likelihood(model, steps, *rows, distinct=distinct)
            (found.per_step(found.logprob_K, len(steps)) * self.weight_S[index]).sum().backward()

    def _steps(self, index: Tensor) -> Any:
        mask = self.pipe.checkpoint.transformer.config.mask_token_id
        return pick_steps(self.batch, self.sample_S[index], self.step_S[index], mask)


def compare_learner(
    pipe: CoGRPOPipeline,
    *,
    steps: int,
    groups: int,
    group_size: int,
    rounds: int,
    learner_batch: int,
) -> dict[str, Any]:
    """Forward and backward over all steps of a rollout in groups, to the gradients of all weights.

    The straightforward way takes 16 steps a pass, the learner `learner_batch`; with 16 it is
    listed too. `gradient_gap` is the largest difference of a gradient, relative to the largest
    entry of its tensor.
    """
    model = pipe.checkpoint.transformer.requires_grad_(True)
    task = _task(pipe, steps=steps, groups=groups, group_size=group_size)
    variants = {
        "straightforward": lambda: task.straightforward(PASS),
        "cogrpo, 16 steps a pass": lambda: task.cogrpo(PASS),
        "cogrpo": lambda: task.cogrpo(learner_batch),
    }

    def fresh(run: Any) -> Any:
        def once() -> None:
            model.zero_grad()
            run()

        return once

    found = timed({name: fresh(run) for name, run in variants.items()}, rounds)
    gradients, peaks = {}, {}
    for name, run in variants.items():
        model.zero_grad()
        run()
        gradients[name] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        # A second backward pass adds to gradients that exist: what it takes beyond them.
        peaks[name] = peak_bytes(run, pipe.device)
        gradients[name] = {n: 0.5 * g for n, g in gradients[name].items()}
    model.zero_grad()
    names = [name for name in variants if name != "straightforward"]
    return {
        "seconds": found.seconds,
        "faster": {name: found.ratio("straightforward", name) for name in names},
        "peak_bytes": peaks,
        "memory": {name: peaks[name] / peaks["straightforward"] for name in names},
        "gradient_gap": {
            name: _gap(gradients["straightforward"], gradients[name]) for name in names
        },
    }


def _task(pipe: CoGRPOPipeline, *, steps: int, groups: int, group_size: int) -> _Task:
    trajectories: list[Trajectory] = pipe(
        list(PROMPTS[:groups]),
        num_images_per_prompt=group_size,
        num_inference_steps=steps,
        schedule="meissonic",
        seed=0,
        output_type="tokens",
    ).trajectories
    batch = collate(trajectories).to(pipe.device)
    sample_S, step_S = all_steps(batch)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(sample_S), generator=generator).to(pipe.device)
    weight = torch.randn(len(order), generator=generator).to(pipe.device)
    conditions = Conditions(pipe.checkpoint, trajectories)
    return _Task(pipe, batch, conditions, sample_S[order], step_S[order], weight)


def _gap(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    assert expected.keys() == found.keys()
    return max(
        float((found[name] - g).abs().max() / g.abs().max().clamp(min=1e-12))
        for name, g in expected.items()
    )
