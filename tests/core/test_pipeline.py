"""The pipeline: seeds, replay, callbacks, defaults and refusals, with a tiny checkpoint."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cogrpo_core.denoise import SAMPLER_VERSION
from cogrpo_core.images import png_bytes
from cogrpo_core.models.checkpoint import CheckpointError
from cogrpo_core.pipeline import CoGRPOPipeline, NonFiniteError, PipelineInputError
from cogrpo_core.schedule import meissonic
from cogrpo_core.trajectory import Trajectory


@pytest.fixture(scope="module")
def pipe(model) -> CoGRPOPipeline:
    return CoGRPOPipeline(model)


@pytest.fixture(scope="module")
def learned_pipe(model_with_policy) -> CoGRPOPipeline:
    return CoGRPOPipeline(model_with_policy, policy_version="v3")


def tokens(output) -> np.ndarray:
    return np.stack([trajectory.tokens for trajectory in output.trajectories])


def test_a_prompt_gives_pictures_and_trajectories(pipe):
    output = pipe("a red circle", seed=3, num_images_per_prompt=2)
    assert [image.size for image in output.images] == [(16, 16)] * 2
    assert {image.mode for image in output.images} == {"RGB"}
    for i, trajectory in enumerate(output.trajectories):
        assert trajectory.prompt == "a red circle"
        assert trajectory.negative_prompt == ""
        assert trajectory.seed == 3 + i
        assert (trajectory.height, trajectory.width) == (16, 16)
        assert (trajectory.grid_height, trajectory.grid_width) == (8, 8)
        assert trajectory.num_steps == 6
        assert trajectory.schedule == "meissonic"
        assert trajectory.model == "tiny"
        assert trajectory.policy_version == "base"
        assert np.array_equal(trajectory.actions, meissonic(6, 3.0).numpy())
        assert trajectory.raw_actions is None
        assert trajectory.tokens.max() < 32
        assert set(trajectory.fill_step) == set(range(6))
    assert not np.array_equal(*tokens(output))


def test_the_pictures_are_the_decoded_tokens(pipe, model):
    output = pipe("a red circle", seed=3)
    ids = torch.from_numpy(output.trajectories[0].tokens.copy())[None]
    with torch.no_grad():
        decoded = model.vqvae.decode(ids, force_not_quantize=True, shape=(1, 8, 8, 4))
    expected = decoded.sample[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(np.asarray(output.images[0]) - expected).max() <= 0.51


def test_image_i_is_that_of_seed_plus_i(pipe):
    together = tokens(pipe("a", seed=2**32 - 1, num_images_per_prompt=3, output_type="tokens"))
    apart = tokens(pipe(["a"] * 3, seed=[2**32 - 1, 0, 1], output_type="tokens"))
    assert np.array_equal(together, apart)
    assert np.array_equal(together[1:2], tokens(pipe("a", seed=0, output_type="tokens")))


def test_seeds_are_random_when_left_out(pipe):
    seeds = {pipe("a", num_inference_steps=1).trajectories[0].seed for _ in range(4)}
    assert len(seeds) > 1


def test_a_list_of_prompts_is_each_prompt_by_itself(pipe):
    together = pipe(["a", "two cats"], negative_prompt=["", "dogs"], seed=[4, 5])
    alone = pipe("two cats", negative_prompt="dogs", seed=5)
    assert [t.prompt for t in together.trajectories] == ["a", "two cats"]
    assert np.array_equal(tokens(together)[1:], tokens(alone))
    assert together.images[1].tobytes() == alone.images[0].tobytes()


def test_prompt_negative_prompt_guidance_and_schedule_matter(pipe):
    outputs = [
        tokens(pipe("a red circle", seed=1, output_type="tokens", **change))
        for change in (
            {},
            {"negative_prompt": "green"},
            {"guidance_scale": 8.0},
            {"schedule": "cosine-power:3"},
            {"schedule": {"sample_temperature": 0.5}},
        )
    ]
    outputs.append(tokens(pipe("a blue circle", seed=1, output_type="tokens")))
    assert len({output.tobytes() for output in outputs}) == len(outputs)


def test_a_mixed_batch_is_its_jobs_apart(learned_pipe):
    jobs = [
        *learned_pipe.plan("a", seed=1, num_inference_steps=3, schedule="meissonic"),
        *learned_pipe.plan("b", seed=2, num_inference_steps=7),
        *learned_pipe.plan("c", seed=2, schedule="cosine-power:2", guidance_scale=1.0),
    ]
    for job, together in zip(jobs, learned_pipe.generate(jobs), strict=True):
        (alone,) = learned_pipe.generate([job])
        assert replace(alone, created_at_ms=0).to_bytes() == (
            replace(together, created_at_ms=0).to_bytes()
        )


def test_another_size_of_the_checkpoint(pipe):
    output = pipe("a", seed=1, height=16, width=24)
    assert output.images[0].size == (24, 16)
    assert output.trajectories[0].grid_width == 12


@pytest.mark.parametrize("options", [{}, {"explore": True}, {"schedule": "paper-table-1"}])
def test_a_logged_trajectory_is_replayed(learned_pipe, options):
    output = learned_pipe("a red circle", seed=9, num_images_per_prompt=3, **options)
    for image, trajectory in zip(output.images, output.trajectories, strict=True):
        logged = Trajectory.from_bytes(trajectory.to_bytes())
        again = learned_pipe.replay(logged)
        assert again.trajectories[0].to_bytes() == trajectory.to_bytes()
        assert again.images[0].tobytes() == image.tobytes()
        verification = learned_pipe.verify(logged)
        assert verification.identical
        assert verification.logprob_gap == 0


def test_verification_finds_a_changed_trajectory(pipe):
    trajectory = pipe("a", seed=1, output_type="tokens").trajectories[0]
    other = trajectory.tokens.copy()
    other[:2] = (other[:2] + 1) % 32
    verification = pipe.verify(replace(trajectory, tokens=other))
    assert not verification.identical
    assert verification.differing_tokens == 2
    later = (trajectory.fill_step + 1).clip(max=5)
    assert not pipe.verify(replace(trajectory, fill_step=later)).identical
    assert not pipe.verify(replace(trajectory, seed=2)).identical


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "0" * 64},
        {"sampler_version": SAMPLER_VERSION + 1},
        {"grid_height": 4, "grid_width": 16},
    ],
)
def test_what_others_made_is_not_replayed(pipe, change):
    trajectory = pipe("a", seed=1, output_type="tokens").trajectories[0]
    with pytest.raises(PipelineInputError) as caught:
        pipe.replay(replace(trajectory, **change))
    assert caught.value.field == "trajectory"


def test_learned_is_the_default_of_a_checkpoint_with_a_policy(learned_pipe, pipe):
    trajectory = learned_pipe("a", seed=1, output_type="tokens").trajectories[0]
    assert trajectory.schedule == "learned"
    assert trajectory.policy_version == "v3"
    assert trajectory.raw_actions is not None
    assert np.abs(trajectory.raw_actions).min() > 0
    assert (trajectory.action_logprob != 0).all()
    plain = learned_pipe("a", seed=1, schedule="meissonic", output_type="tokens")
    assert np.array_equal(tokens(plain), tokens(pipe("a", seed=1, output_type="tokens")))


def test_an_untrained_policy_changes_nothing(model_with_fresh_policy, pipe):
    learned = CoGRPOPipeline(model_with_fresh_policy)("a", seed=1).trajectories[0]
    base = pipe("a", seed=1).trajectories[0]
    for name in ("tokens", "fill_step", "token_logprob", "actions"):
        assert np.array_equal(getattr(learned, name), getattr(base, name))


def test_the_callback_sees_every_step(pipe):
    seen = []

    def record(pipe_, step, timestep, state):
        seen.append((pipe_, step, timestep, state["tokens"].clone(), state["actions"].clone()))
        return {"tokens": torch.zeros_like(state["tokens"])}  # ignored

    trajectory = pipe("a", seed=1, callback_on_step_end=record).trajectories[0]
    assert [entry[:3] for entry in seen] == [(pipe, i, 5 - i) for i in range(6)]
    for i, (*_, seen_tokens, actions) in enumerate(seen):
        assert np.array_equal(seen_tokens[0].numpy(), trajectory.tokens_at(i + 1, 39))
        assert np.array_equal(actions[0].numpy(), trajectory.actions[i])


def test_an_exception_from_the_callback_ends_the_call(pipe):
    steps = []

    def stop(_, step, *__):
        steps.append(step)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a", callback_on_step_end=stop)
    assert steps == [0, 1, 2]
    assert pipe.verify(pipe("a", seed=1, output_type="tokens").trajectories[0]).identical


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": " \n"}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "must be text"),
        ({"prompt": 7}, "prompt", "must be text"),
        ({"prompt": b"cat"}, "prompt", "must be text"),
        ({"prompt": ["a", 7]}, "prompt", "must be text"),
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": ["a"] * 65}, "prompt", "64 images"),
        ({"prompt": "\ud800"}, "prompt", "Unicode"),
        ({"prompt": "x" * 2001}, "prompt", "2001 characters; at most 2000"),
        ({"prompt": "x " * 23}, "prompt", "25 tokens, but the text encoder reads 24"),
        ({"negative_prompt": "x " * 23}, "negative_prompt", "25 tokens"),
        ({"negative_prompt": 3}, "negative_prompt", "must be text"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt", "2 negative prompts for 1"),
        ({"num_inference_steps": 0}, "num_inference_steps", "1 to 256"),
        ({"num_inference_steps": 10**9}, "num_inference_steps", "1 to 256"),
        ({"num_inference_steps": 2.5}, "num_inference_steps", "whole number"),
        ({"num_inference_steps": True}, "num_inference_steps", "whole number"),
        ({"num_inference_steps": "8"}, "num_inference_steps", "whole number"),
        ({"guidance_scale": -1}, "guidance_scale", "0 to 100"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "0 to 100"),
        ({"guidance_scale": "9"}, "guidance_scale", "number"),
        ({"guidance_scale": 10**400}, "guidance_scale", "0 to 100"),
        ({"seed": -1}, "seed", "0 to 4294967295"),
        ({"seed": 2**32}, "seed", "0 to 4294967295"),
        ({"seed": 1.0}, "seed", "whole number"),
        ({"seed": "7"}, "seed", "whole number"),
        ({"seed": [1, 2]}, "seed", "2 seeds for 1 images"),
        ({"seed": [-1]}, "seed", "0 to"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt", "1 to 16"),
        ({"num_images_per_prompt": 17}, "num_images_per_prompt", "1 to 16"),
        ({"height": 17}, "height", "may be 16x16, 16x24"),
        ({"width": 10**9}, "width", "may be 16x16, 16x24"),
        ({"height": "16"}, "height", "may be 16x16"),
        ({"schedule": "nonsense"}, "schedule", "unknown schedule"),
        ({"schedule": "learned"}, "schedule", "no learned schedule"),
        ({"schedule": {"remask_ratio": 2}}, "schedule.remask_ratio", "between 0 and 1"),
        ({"schedule": 5}, "schedule", "not int"),
        ({"explore": True}, "explore", "learned schedule"),
        ({"output_type": "latent"}, "output_type", "pil"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(pipe, change, field, message):
    with pytest.raises(PipelineInputError, match=message) as caught:
        pipe(**({"prompt": "a"} | change))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_the_longest_prompt_and_numpy_numbers_work(pipe):
    output = pipe("x " * 22, seed=np.int64(5), num_inference_steps=np.int32(2))
    assert output.trajectories[0].seed == 5


def test_damaged_weights_are_an_error_and_not_a_picture(model_folder):
    pipe = CoGRPOPipeline.from_pretrained(model_folder)
    with torch.no_grad():
        pipe.checkpoint.transformer.mlm_layer.conv2.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="tiny"):
        pipe("a", seed=1)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        CoGRPOPipeline.from_pretrained(tmp_path)


def test_a_png_says_what_made_it(pipe):
    output = pipe("a café \N{ARTIST PALETTE}", seed=1)
    png = Image.open(io.BytesIO(png_bytes(output.images[0], output.trajectories[0], scale_up=3)))
    assert png.size == (48, 48)
    assert png.info["prompt"] == "a café \N{ARTIST PALETTE}"
    assert {key: png.info[key] for key in ("seed", "steps", "schedule", "model")} == {
        "seed": "1",
        "steps": "6",
        "schedule": "meissonic",
        "model": "tiny",
    }
    small = png.resize((16, 16), Image.Resampling.NEAREST)
    assert small.tobytes() == output.images[0].tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_samples_in_float32(model_folder, dtype):
    pipe = CoGRPOPipeline.from_pretrained(model_folder, dtype=dtype)
    output = pipe("a red circle", seed=3)
    assert output.images[0].size == (16, 16)
    assert pipe.verify(output.trajectories[0]).identical
    # More values than either type can hold apart.
    assert len(set(output.trajectories[0].token_logprob.tolist())) > 56
