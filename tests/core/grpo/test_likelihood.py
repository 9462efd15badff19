"""Recompute-from-log: at the same weights the likelihood gives what the sampler wrote down."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from cogrpo_core.grpo.batch import (
    Steps,
    TrajectoryBatch,
    all_steps,
    collate,
    distinct_passes,
    pick_steps,
)
from cogrpo_core.grpo.likelihood import action_likelihood, policy_features, token_likelihood
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.models.transformer import Conditioning
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.trajectory import Trajectory

FLOOR = 1e-4  # float32 on a CPU, a token


def rollout(checkpoint: Checkpoint, **options: object) -> tuple[CoGRPOPipeline, list[Trajectory]]:
    pipe = CoGRPOPipeline(checkpoint, samples_per_pass=4)
    prompts = ["a red circle", "two blue stars"]
    settings: dict[str, object] = {
        "num_inference_steps": 5,
        "seed": [1, 2, 3, 4],
        "num_images_per_prompt": 2,
        "output_type": "tokens",
    }
    return pipe, pipe(prompts, **(settings | options)).trajectories  # type: ignore[arg-type]


def conditioned(
    pipe: CoGRPOPipeline, trajectories: list[Trajectory], sample_M: Tensor
) -> tuple[Conditioning, Conditioning]:
    jobs = [
        job
        for each in trajectories
        for job in pipe.plan(
            each.prompt, negative_prompt=each.negative_prompt, num_inference_steps=1
        )
    ]
    conditional, unconditional = pipe.condition(jobs)
    return conditional.select(sample_M), unconditional.select(sample_M)


def whole(batch: TrajectoryBatch, mask: int) -> Steps:
    return pick_steps(batch, *all_steps(batch), mask)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("tau_s", [0.7, 1.0, 2.0])
def test_tokens_have_the_logged_probability(
    model: Checkpoint, guidance: float, tau_s: float
) -> None:
    schedule = {"guidance_scale": guidance, "sample_temperature": tau_s}
    pipe, trajectories = rollout(model, schedule=schedule)
    batch = collate(trajectories)
    steps = whole(batch, model.transformer.config.mask_token_id)
    with torch.no_grad():
        found = token_likelihood(
            model.transformer, steps, *conditioned(pipe, trajectories, steps.sample_M)
        )
    assert len(found.logprob_K) == batch.tokens_BN.numel()  # every token is filled once
    assert float((found.logprob_K - found.logged_K).abs().max()) < FLOOR


def test_trajectories_of_different_lengths_share_a_batch(model: Checkpoint) -> None:
    pipe, short = rollout(model, num_inference_steps=2)
    _, long = rollout(model, num_inference_steps=6, guidance_scale=2.0)
    trajectories = [*short, *long]
    batch = collate(trajectories)
    steps = whole(batch, model.transformer.config.mask_token_id)
    assert len(steps) == 4 * 2 + 4 * 6
    with torch.no_grad():
        found = token_likelihood(
            model.transformer, steps, *conditioned(pipe, trajectories, steps.sample_M)
        )
    assert float((found.logprob_K - found.logged_K).abs().max()) < FLOOR


def test_guidance_left_out_would_be_seen(model: Checkpoint) -> None:
    """The floor is no blank cheque: the classic mistake is orders of magnitude above it."""
    pipe, trajectories = rollout(model, guidance_scale=3.0)
    batch = collate(trajectories)
    batch.actions_BT4[..., 3] = 1.0
    steps = whole(batch, model.transformer.config.mask_token_id)
    with torch.no_grad():
        found = token_likelihood(
            model.transformer, steps, *conditioned(pipe, trajectories, steps.sample_M)
        )
    assert float((found.logprob_K - found.logged_K).abs().max()) > 100 * FLOOR


def test_actions_have_the_logged_density(model_with_policy: Checkpoint) -> None:
    policy = model_with_policy.schedule_policy
    assert policy is not None
    pipe, trajectories = rollout(model_with_policy, explore=True)
    batch = collate(trajectories)
    steps = whole(batch, model_with_policy.transformer.config.mask_token_id)
    conditional, unconditional = conditioned(pipe, trajectories, steps.sample_M)
    with torch.no_grad():
        features = policy_features(model_with_policy.transformer, steps, conditional)
        actions = action_likelihood(policy, steps, features)
        tokens = token_likelihood(model_with_policy.transformer, steps, conditional, unconditional)
    assert float((actions.logprob_M - steps.action_logprob_M).abs().max()) < FLOOR
    assert float((tokens.logprob_K - tokens.logged_K).abs().max()) < FLOOR
    assert float(steps.raw_actions_M4.std()) > 0.1  # it did explore


def test_equal_passes_are_made_once(model_with_policy: Checkpoint) -> None:
    """Likelihood, features and gradient are those of a pass for each step."""
    transformer = model_with_policy.transformer
    pipe, trajectories = rollout(model_with_policy, explore=True)
    _, longer = rollout(model_with_policy, explore=True, num_inference_steps=6)
    trajectories = [*trajectories, *longer]
    batch = collate(trajectories)
    steps = whole(batch, transformer.config.mask_token_id)
    rows = conditioned(pipe, trajectories, steps.sample_M)
    texts = [t.prompt for t in trajectories]
    prompt_M = torch.tensor([texts.index(t) for t in texts])[steps.sample_M]
    distinct = distinct_passes(steps, torch.cat([prompt_M, torch.full_like(prompt_M, 99)]))
    begins = (
        len({(t.prompt, t.num_steps) for t in trajectories}) + 2
    )  # without text: one for each T
    assert len(distinct.row_R) == 2 * int((steps.step_M > 0).sum()) + begins
    parameter = transformer.get_parameter("transformer_blocks.0.attn.to_q.weight")
    found = []
    for chosen in (None, distinct):
        tokens = token_likelihood(transformer, steps, *rows, features=True, distinct=chosen)
        (gradient,) = torch.autograd.grad(tokens.logprob_K.sum(), parameter)
        assert tokens.features_MDhw is not None
        found.append((tokens.logprob_K.detach(), tokens.features_MDhw, gradient))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    alone = distinct_passes(steps, prompt_M)
    features = policy_features(transformer, steps, rows[0], alone)
    torch.testing.assert_close(features, found[0][1], rtol=1e-4, atol=1e-4)
    assert len(alone.row_R) < len(steps)


def test_states_are_the_trajectorys_own(model: Checkpoint) -> None:
    mask = model.transformer.config.mask_token_id
    _, trajectories = rollout(model)
    batch = collate(trajectories)
    steps = whole(batch, mask)
    for m, (sample, step) in enumerate(itertools.product(range(4), range(5))):
        assert np.array_equal(steps.state_MN[m].numpy(), trajectories[sample].tokens_at(step, mask))
        after = trajectories[sample].tokens_at(step + 1, mask)
        assert np.array_equal(
            steps.filled_MN[m].numpy(), (steps.state_MN[m].numpy() == mask) & (after != mask)
        )


def test_trajectories_of_other_grids_do_not_mix(model: Checkpoint) -> None:
    _, square = rollout(model)
    _, wide = rollout(model, width=24)
    with pytest.raises(ValueError, match="one token grid"):
        collate([*square, *wide])
