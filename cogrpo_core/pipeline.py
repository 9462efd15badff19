"""`CoGRPOPipeline`: prompts in, pictures and their trajectories out.

It checks what is asked (inputs.py), turns it into jobs, one an image, runs the denoising loop
(denoise.py) over them and decodes the tokens (images.py).

Shape letters: B images, N image tokens, T steps.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image

from cogrpo_core import inputs
from cogrpo_core.denoise import SAMPLER_VERSION, denoise, start_samples
from cogrpo_core.images import decode_tokens
from cogrpo_core.inputs import MAX_IMAGES, PipelineInputError
from cogrpo_core.jobs import ActionLog, Job, NonFiniteError, Origin, record
from cogrpo_core.models.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from cogrpo_core.models.schedule_policy import SchedulePolicy
from cogrpo_core.models.transformer import Conditioning
from cogrpo_core.models.vqvae import vq_config
from cogrpo_core.schedule import (
    LEARNED,
    MAX_STEPS,
    Schedule,
    ScheduleError,
    ScheduleSpec,
    build_schedule,
)
from cogrpo_core.trajectory import MAX_CODES, Trajectory

__all__ = [
    "CoGRPOPipeline",
    "Job",
    "NonFiniteError",
    "PipelineInputError",
    "PipelineOutput",
    "StepCallback",
    "Verification",
]

AESTHETIC_SCORE = 6.0
"""The micro-condition that the base model was trained with for good pictures."""

StepCallback = Callable[["CoGRPOPipeline", int, int, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class PipelineOutput:
    """What one call made, image by image."""

    images: list[Image.Image]
    trajectories: list[Trajectory]


@dataclass(frozen=True)
class Verification:
    """How a logged trajectory compares with its replay."""

    identical: bool
    """All tokens and the steps at which they were filled are the same."""
    differing_tokens: int
    logprob_gap: float
    """The largest difference between logged and recomputed log-probability of a token."""


class CoGRPOPipeline:
    """Text to image with a Meissonic-class checkpoint, called as diffusers' pipelines are.

    `policy_version` is stamped on every trajectory. `samples_per_pass` bounds the images of one
    forward pass: 1 on a CPU, where a sample then is the same to the bit in every batch, and 8 on an
    accelerator, where batches pay and float ties can differ. Pictures of more than `decode_tile`
    tokens a side are decoded in tiles (tiles.py); None decodes each as a whole.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        policy_version: str = "base",
        samples_per_pass: int | None = None,
        decode_tile: int | None = None,
    ) -> None:
        codes = checkpoint.transformer.config.codebook_size
        if codes > MAX_CODES:
            raise CheckpointError(f"the model has {codes} codes; at most {MAX_CODES} can be logged")
        self.checkpoint = checkpoint
        self.model_name = _short_name(checkpoint.name)
        self.token_pixels = vq_config(checkpoint.vqvae).downscale
        self.policy_version = policy_version
        self.device = next(checkpoint.transformer.parameters()).device
        self.samples_per_pass = samples_per_pass or (1 if self.device.type == "cpu" else 8)
        self.decode_tile = decode_tile

    @property
    def origin(self) -> Origin:
        """What is stamped on every trajectory."""
        return Origin(self.model_name, self.checkpoint.fingerprint, self.policy_version)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        policy_version: str = "base",
    ) -> Self:
        """A pipeline from a folder, the name of the embedded model ("shapes") or a Hub id.

        Raises `CheckpointError` where the checkpoint cannot be loaded.
        """
        checkpoint = load_checkpoint(name_or_path, dtype=dtype, device=device, revision=revision)
        return cls(checkpoint, policy_version=policy_version)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        schedule: ScheduleSpec | None = None,
        seed: int | Sequence[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        explore: bool = False,
        output_type: Literal["pil", "tokens"] = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> PipelineOutput:
        """Pictures of the prompt, or of every prompt of a list, with their trajectories.

        What is left out is the checkpoint's default: its steps, guidance and size, its scheduling
        policy if it has one ("learned") or else the `meissonic` schedule. A guidance scale up to 1
        turns guidance off in the presets. Image i has the seed `seed` + i modulo 2^32, or the ith
        of a list, or a random one. `output_type="tokens"` leaves out the decoding.

        After every step `callback_on_step_end(pipe, step, timestep, state)` is called with the
        steps that remained at it and a dict: the `tokens` [B,N], steps of filling `fill_step` [B,N]
        and `actions` [B,4] so far, and the `features` [B,D,h,w] that a scheduling policy read, else
        None. What it returns is ignored, and an exception from it ends the call. Raises
        `PipelineInputError`, whose `field` names the argument at fault, and `NonFiniteError`.
        """
        if output_type not in ("pil", "tokens"):
            raise PipelineInputError("output_type", 'output_type must be "pil" or "tokens"')
        jobs = self.plan(
            prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            schedule=schedule,
            seed=seed,
            height=height,
            width=width,
            num_images_per_prompt=num_images_per_prompt,
            explore=explore,
        )
        trajectories = self.generate(jobs, callback_on_step_end)
        images = self.decode(trajectories) if output_type == "pil" else []
        return PipelineOutput(images, trajectories)

    def plan(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        schedule: ScheduleSpec | None = None,
        seed: int | Sequence[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        explore: bool = False,
    ) -> list[Job]:
        """The jobs that a call with these arguments means; `PipelineInputError` if it cannot be."""
        defaults = self.checkpoint.generation
        count = inputs.whole_number("num_images_per_prompt", num_images_per_prompt, 1, MAX_IMAGES)
        texts = inputs.prompts(prompt, negative_prompt, count)
        for field, index in (("prompt", 0), ("negative_prompt", 1)):
            for text in dict.fromkeys(pair[index] for pair in texts):
                self._check_token_count(field, text)
        rows, columns = inputs.size(
            defaults.height if height is None else height,
            defaults.width if width is None else width,
            defaults.sizes,
            self.token_pixels,
        )
        steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        table, learned = self._schedule(
            schedule,
            inputs.whole_number("num_inference_steps", steps, 1, MAX_STEPS),
            guidance_scale,
        )
        if explore and not learned:
            raise PipelineInputError("explore", "only a learned schedule can explore")
        return [
            Job(one, negative, image_seed, rows, columns, table, learned, explore)
            for (one, negative), image_seed in zip(
                texts, inputs.seeds(seed, len(texts)), strict=True
            )
        ]

    def generate(
        self, jobs: Sequence[Job], callback_on_step_end: StepCallback | None = None
    ) -> list[Trajectory]:
        """The trajectories of jobs of one size; their steps, schedules and seeds may all differ."""
        return self._run(jobs, self.checkpoint.schedule_policy, callback_on_step_end)

    def _run(
        self,
        jobs: Sequence[Job],
        policy: SchedulePolicy | None,
        callback_on_step_end: StepCallback | None = None,
    ) -> list[Trajectory]:
        assert len({(job.height, job.width) for job in jobs}) == 1, "one size a batch"
        transformer = self.checkpoint.transformer
        started_ms = int(time.time() * 1000)
        grid = self.grid(jobs[0])
        conditional, unconditional = self.condition(jobs)
        samples = start_samples(
            [job.seed for job in jobs],
            [job.schedule.actions_T4 for job in jobs],
            grid[0] * grid[1],
            transformer.config.mask_token_id,
            learned=[job.learned for job in jobs],
            explore=[job.explore for job in jobs],
            device=self.device,
        )
        turns = denoise(
            transformer,
            samples,
            conditional,
            unconditional,
            grid=grid,
            policy=policy,
            samples_per_pass=self.samples_per_pass,
            texts=[(job.prompt, job.negative_prompt) for job in jobs],
            keep_features=callback_on_step_end is not None,
        )
        longest = max(job.schedule.num_steps for job in jobs)
        log = ActionLog()
        for step, turn in enumerate(turns):
            samples = turn.samples
            log.append(turn)
            if callback_on_step_end is not None:
                state = {
                    "tokens": samples.tokens_BN,
                    "fill_step": samples.fill_step_BN,
                    "actions": turn.actions_B4,
                    "features": turn.features,
                }
                callback_on_step_end(self, step, longest - 1 - step, state)
        return record(
            jobs,
            samples,
            *log.stacked(),
            grid=grid,
            origin=self.origin,
            created_at_ms=started_ms,
        )

    def condition(self, jobs: Sequence[Job]) -> tuple[Conditioning, Conditioning]:
        """The constant work of jobs: conditional and unconditional conditioning, a row for each.

        Each different text is encoded once and by itself, so that its states depend on no other.
        """
        rows: dict[tuple[str, int, int], Conditioning] = {}
        for job in jobs:
            for text in (job.prompt, job.negative_prompt):
                key = (text, job.height, job.width)
                if key not in rows:
                    rows[key] = self.encode(*key)
        return (
            Conditioning.cat([rows[job.prompt, job.height, job.width] for job in jobs]),
            Conditioning.cat([rows[job.negative_prompt, job.height, job.width] for job in jobs]),
        )

    @torch.no_grad()
    def encode(self, text: str, height: int, width: int) -> Conditioning:
        """The conditioning, one row, of a text for pictures of a size."""
        states = self.checkpoint.text_encoder.encode([text])
        micro = [float(width), float(height), 0.0, 0.0, AESTHETIC_SCORE]
        return self.checkpoint.transformer.condition(
            states.encoder_hidden_states,
            states.pooled_projections,
            torch.tensor([micro], device=self.device),
        )

    def decode(self, trajectories: Sequence[Trajectory]) -> list[Image.Image]:
        """The pictures of trajectories; as many at a time as a forward pass has samples."""
        images: list[Image.Image] = []
        vqvae, size, tile = self.checkpoint.vqvae, self.samples_per_pass, self.decode_tile
        for grid, group in groupby(trajectories, lambda each: (each.grid_height, each.grid_width)):
            tokens_BN = torch.from_numpy(np.stack([each.tokens for each in group]))
            images += decode_tokens(vqvae, tokens_BN, grid, images_per_pass=size, tile=tile)
        return images

    def replay(
        self, trajectory: Trajectory, *, output_type: Literal["pil", "tokens"] = "pil"
    ) -> PipelineOutput:
        """The image made again from its seed, prompt and logged actions.

        Gives the same tokens with the same weights on the same kind of device. Raises
        `PipelineInputError` where other weights or another sampler made the trajectory.
        """
        if trajectory.fingerprint != self.checkpoint.fingerprint:
            raise PipelineInputError(
                "trajectory",
                f"other weights made the trajectory ({trajectory.model} "
                f"{trajectory.fingerprint[:12]}; loaded are {self.checkpoint.fingerprint[:12]})",
            )
        if trajectory.sampler_version != SAMPLER_VERSION:
            raise PipelineInputError(
                "trajectory",
                f"sampler {trajectory.sampler_version} made the trajectory; this is sampler "
                f"{SAMPLER_VERSION}",
            )
        job = Job(
            trajectory.prompt,
            trajectory.negative_prompt,
            trajectory.seed,
            trajectory.height,
            trajectory.width,
            Schedule(trajectory.schedule, torch.from_numpy(trajectory.actions.copy())),
            learned=trajectory.raw_actions is not None,
        )
        if self.grid(job) != (trajectory.grid_height, trajectory.grid_width):
            raise PipelineInputError("trajectory", "the trajectory's token grid is another model's")
        (again,) = self._run([job], policy=None)
        again = replace(
            trajectory,
            tokens=again.tokens,
            fill_step=again.fill_step,
            token_logprob=again.token_logprob,
        )
        return PipelineOutput(self.decode([again]) if output_type == "pil" else [], [again])

    def verify(self, trajectory: Trajectory) -> Verification:
        """Replays the trajectory and says whether it comes out the same; raises as `replay`."""
        again = self.replay(trajectory, output_type="tokens").trajectories[0]
        differing = again.tokens != trajectory.tokens
        other = differing | (again.fill_step != trajectory.fill_step)
        gap = np.abs(again.token_logprob - trajectory.token_logprob).max()
        return Verification(not other.any(), int(differing.sum()), float(gap))

    def grid(self, job: Job) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return job.height // self.token_pixels, job.width // self.token_pixels

    def _check_token_count(self, field: str, text: str) -> None:
        encoder = self.checkpoint.text_encoder
        count = encoder.token_count(text)
        if count > encoder.max_length:
            raise PipelineInputError(
                field,
                f"{field} has {count} tokens, but the text encoder reads {encoder.max_length} "
                "(begin and end included): shorten it",
            )

    def _schedule(
        self, spec: ScheduleSpec | None, num_steps: int, guidance_scale: float | None
    ) -> tuple[Schedule, bool]:
        """The schedule's table, and whether the policy moves it."""
        defaults = self.checkpoint.generation
        has_policy = self.checkpoint.schedule_policy is not None
        if spec is None:
            spec = LEARNED if has_policy else "meissonic"
        learned = isinstance(spec, str) and spec == LEARNED
        if learned and not has_policy:
            raise PipelineInputError(
                "schedule", f"{self.model_name} has no learned schedule: name a preset"
            )
        if guidance_scale is None:
            guidance_scale = defaults.guidance_scale
        try:
            table = build_schedule(
                "meissonic" if learned else spec,
                num_steps,
                guidance_scale=inputs.real_number("guidance_scale", guidance_scale, 0.0, 100.0),
                remask_temperature=defaults.remask_temperature,
            )
        except ScheduleError as error:
            raise PipelineInputError(error.field, str(error)) from None
        return table, learned


def _short_name(name: str) -> str:
    """The name of a folder without the path to it; other names as they are."""
    return (Path(name).resolve().name if Path(name).is_dir() else name)[-200:]
