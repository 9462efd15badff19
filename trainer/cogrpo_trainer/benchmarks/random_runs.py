"""Sampler and learner of a model with random weights against the straightforward way.

What sampler.py and learner.py compare, without texts and policies, which cost nothing at this size.

Shape letters: B pictures, M steps, N image tokens.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cogrpo_core.compiled import compile_steps
from cogrpo_core.denoise import denoise, start_samples
from cogrpo_core.grpo.batch import Steps
from cogrpo_core.grpo.likelihood import token_likelihood
from cogrpo_core.schedule import build_schedule
from cogrpo_trainer.benchmarks import baseline
from cogrpo_trainer.benchmarks.interleave import peak_bytes, synchronize, timed
from cogrpo_trainer.benchmarks.random_model import RandomModel

GUIDANCE, TEMPERATURE = 9.0, 2.0
SHARE_FILLED = 0.25
"""Of the positions, by each step that is learned from."""


def compare_random_sampler(
    made: RandomModel, *, steps: int, images: int, rounds: int, compiled: bool
) -> dict[str, Any]:
    """Denoising from conditions to tokens: ours, compiled or not, and the straightforward way.

    `make` is the seconds that the model took, `first` those of our first run, with all that is
    compiled; `alike` whether two of our runs gave the same tokens.
    """
    model, grid = made.transformer, made.grid
    conditions = made.conditions(images)
    table = build_schedule(
        "meissonic", steps, guidance_scale=GUIDANCE, remask_temperature=TEMPERATURE
    ).actions_T4

    def straightforward() -> None:
        with baseline.definitions():
            baseline.sample(
                model,
                *conditions,
                grid=grid,
                num_steps=steps,
                guidance=GUIDANCE,
                temperature=TEMPERATURE,
                seed=0,
            )

    def ours() -> Tensor:
        samples = start_samples(
            list(range(images)),
            [table] * images,
            grid[0] * grid[1],
            model.config.mask_token_id,
            device=conditions[0].text.device,
        )
        turns = denoise(model, samples, *conditions, grid=grid, texts=range(images))
        *_, last = turns
        return last.samples.tokens_BN

    if compiled:
        compile_steps(model)
    began = time.perf_counter()
    tokens_BN = ours()
    synchronize()
    first = time.perf_counter() - began
    alike = torch.equal(tokens_BN, ours())
    found = timed({"straightforward": straightforward, "cogrpo": ours}, rounds)
    return {
        "make": made.seconds,
        "first": first,
        "alike": alike,
        "seconds": found.seconds,
        "faster": found.ratio("straightforward", "cogrpo"),
    }


def compare_random_learner(made: RandomModel, *, steps: int, rounds: int) -> dict[str, Any]:
    """Gradients of the likelihood of `steps` random steps to all weights: time, memory, gap."""
    model = made.transformer.requires_grad_(True)
    conditions = made.conditions(steps)
    picked = _random_steps(made, steps, conditions[0].text.device)

    def straightforward() -> None:
        with baseline.definitions():
            logprob_MN, filled_MN = baseline.logprobs(model, picked, *conditions)
            (logprob_MN * filled_MN).sum().backward()

    def ours() -> None:
        token_likelihood(model, picked, *conditions).logprob_K.sum().backward()

    def fresh(run: Callable[[], None]) -> Callable[[], None]:
        def once() -> None:
            model.zero_grad(set_to_none=True)
            run()

        return once

    runs = {"straightforward": fresh(straightforward), "cogrpo": fresh(ours)}
    found = timed(runs, rounds)
    device = conditions[0].text.device
    peaks = {name: peak_bytes(run, device) for name, run in runs.items()}
    gradients = {}
    for name, run in runs.items():
        run()
        weight = model.mlm_layer.conv2.weight
        assert weight.grad is not None
        gradients[name] = weight.grad.float()
    model.zero_grad(set_to_none=True)
    gap = (gradients["cogrpo"] - gradients["straightforward"]).norm()
    return {
        "seconds": found.seconds,
        "faster": found.ratio("straightforward", "cogrpo"),
        "peak_bytes": peaks,
        "memory": peaks["cogrpo"] / peaks["straightforward"],
        "head_gradient_gap": float(gap / gradients["straightforward"].norm()),
    }


def _random_steps(made: RandomModel, steps: int, device: torch.device) -> Steps:
    """Steps before which a random half of the tokens is known."""
    config, count = made.transformer.config, made.grid[0] * made.grid[1]
    shape = (steps, count)
    tokens_MN = torch.randint(0, config.codebook_size, shape, device=device)
    order_MN = torch.rand(shape, device=device).argsort(dim=1)
    known_MN = order_MN < count // 2
    filled_MN = ~known_MN & (order_MN < count // 2 + SHARE_FILLED * count)
    actions_M4 = torch.tensor([[0.5, 1.0, 1.0, GUIDANCE]], device=device).repeat(steps, 1)
    zeros_M = torch.zeros(steps, device=device)
    return Steps(
        sample_M=torch.arange(steps, device=device),
        step_M=torch.full((steps,), 4, device=device),
        num_steps_M=torch.full((steps,), 8, device=device),
        state_MN=torch.where(known_MN, tokens_MN, config.mask_token_id),
        tokens_MN=tokens_MN,
        filled_MN=filled_MN,
        token_logprob_MN=torch.zeros(shape, device=device),
        actions_M4=actions_M4,
        raw_actions_M4=torch.zeros_like(actions_M4),
        action_logprob_M=zeros_M,
        weight_M=zeros_M + 1,
        used_M4=torch.ones_like(actions_M4, dtype=torch.bool),
        grid=made.grid,
    )
