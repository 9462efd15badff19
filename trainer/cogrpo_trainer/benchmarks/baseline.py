"""The straightforward way to sample and to train, which the benchmarks compare with.

The same weights, conditions encoded once. The forward pass is the model's formula in plain torch,
every position through every layer. Sampling: a doubled batch, the whole head, and
`diffusers.AmusedScheduler.step`, as Meissonic's own pipeline does. Training: logits of all
positions of both passes, and torch's log_softmax.

Shape letters: B samples, M steps, H W token grid, N image tokens, V codes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AmusedScheduler
from torch import Tensor
from torch.nn import functional as F

from cogrpo_core.grpo.batch import Steps
from cogrpo_core.kernels.ops import VARIABLE
from cogrpo_core.models.transformer import TIME_SCALE, Conditioning, MeissonicTransformer
from cogrpo_core.schedule import GUIDANCE_SCALE, SAMPLE_TEMPERATURE


@contextmanager
def definitions() -> Iterator[None]:
    """Plain torch operations in the layers while the block runs."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "reference"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def inner_states(
    model: MeissonicTransformer, token_ids: Tensor, timestep: Tensor, conditioning: Conditioning
) -> Tensor:
    """States [B, h, w, D] after the final norm, from token_ids [B, H, W], layer by layer."""
    x = model.embed(token_ids)
    if model.config.downsample:
        x = model.down_block["downsample"](x)
    grid = x.shape[1:3]
    image = model.project_to_hidden(model.project_to_hidden_norm(x.flatten(1, 2)))
    text = conditioning.text
    time = model.sinusoids(timestep.float() * TIME_SCALE).to(image.dtype)
    emb = F.silu(model.time_text_embed["timestep_embedder"](time) + conditioning.pooled)
    rope = model.rope(text.shape[1], *token_ids.shape[1:])
    for block in model.transformer_blocks:
        image, text = block(image, text, emb, rope)
    both = torch.cat([text, image], dim=1)
    for block in model.single_transformer_blocks:
        both = block(both, emb, rope)
    normed: Tensor = model.project_from_hidden_norm(both[:, text.shape[1] :])
    return normed.unflatten(1, grid)


def all_logits(
    model: MeissonicTransformer, token_ids: Tensor, timestep: Tensor, conditioning: Conditioning
) -> Tensor:
    """Logits [B, N, V] of all positions of token_ids [B, H, W], layer by layer."""
    x = model.project_from_hidden(inner_states(model, token_ids, timestep, conditioning))
    if model.config.upsample:
        x = model.up_block["upsample"](x)
    return model.head(model.mlm_layer(x).flatten(1, 2))


@torch.no_grad()
def sample(
    model: MeissonicTransformer,
    conditional: Conditioning,
    unconditional: Conditioning,
    *,
    grid: tuple[int, int],
    num_steps: int,
    guidance: float,
    temperature: float,
    seed: int,
) -> Tensor:
    """Tokens [B, N] of one sample a row of the conditionings, after T steps."""
    config, count = model.config, len(conditional)
    both = Conditioning.cat([unconditional, conditional])
    scheduler = AmusedScheduler(mask_token_id=config.mask_token_id)
    device = both.text.device
    scheduler.set_timesteps(num_steps, (temperature, 0), device)
    generator = torch.Generator(device).manual_seed(seed)
    tokens_BHW = torch.full((count, *grid), config.mask_token_id, device=device)
    for timestep in scheduler.timesteps:
        doubled = tokens_BHW.repeat(2, 1, 1)
        logits = all_logits(model, doubled, timestep.expand(2 * count), both)
        u, c = logits.chunk(2)
        guided = (u + guidance * (c - u)).transpose(1, 2).unflatten(2, grid)
        tokens_BHW = scheduler.step(guided, timestep, tokens_BHW, generator=generator).prev_sample
    return tokens_BHW.flatten(1)


def logprobs(
    model: MeissonicTransformer,
    steps: Steps,
    conditional: Conditioning,
    unconditional: Conditioning,
) -> tuple[Tensor, Tensor]:
    """log softmax(l / tau_s) of each final token [M, N] and where the step filled it [M, N]."""
    logits = all_logits(
        model,
        steps.state_MN.repeat(2, 1).unflatten(1, steps.grid),
        steps.remaining_M.repeat(2),
        Conditioning.cat([conditional, unconditional]),
    )
    c, u = logits.chunk(2)
    scale, tau = (
        steps.actions_M4[:, column, None, None] for column in (GUIDANCE_SCALE, SAMPLE_TEMPERATURE)
    )
    logprob_MNV = ((u + scale * (c - u)) / tau).log_softmax(dim=-1)
    return logprob_MNV.gather(2, steps.tokens_MN[..., None])[..., 0], steps.filled_MN
