"""The sampler against the straightforward way (baseline.py): time, and equal logits."""

from copy import copy
from typing import Any

import torch

from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_trainer.benchmarks import baseline
from cogrpo_trainer.benchmarks.interleave import timed

PROMPT = "a red circle left of a blue square"


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
    hidden, _ = model.hidden_at(tokens, time, conditional, position)
    ours = model.head(hidden)
    with baseline.definitions():
        plain = baseline.all_logits(model, tokens, time, conditional)
    return float((ours - plain.flatten(0, 1)[position]).abs().max())
