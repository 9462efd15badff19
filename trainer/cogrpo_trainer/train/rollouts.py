"""Rollouts: groups of samples with the core's own sampler, in this process or on Ray actors.

One code path makes the pictures of users and those of training, so that what is learned is what is
served.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cogrpo_core.inputs import MAX_IMAGES_PER_CALL
from cogrpo_core.models.checkpoint import Checkpoint, load_checkpoint
from cogrpo_core.models.schedule_policy import SchedulePolicy, SchedulePolicyConfig
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.schedule import LEARNED
from cogrpo_core.trajectory import Trajectory
from cogrpo_trainer.device import best_device
from cogrpo_trainer.train.lora import merged_weights

ACTOR_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Ask:
    """What the samples of an iteration are to be: one prompt and seed a sample."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    num_inference_steps: int
    explore: bool
    negative_prompts: tuple[str, ...] = ()
    """One a sample, or none at all."""
    keep_features: bool = False
    """Whether the rollout holds what the scheduling policy read."""


@dataclass(frozen=True)
class Rollout:
    """Trajectories with their pictures, in the order that was asked."""

    trajectories: list[Trajectory]
    images: NDArray[np.uint8]
    """[B, H, W, 3]."""
    live: tuple[bool, ...] = ()
    """Which of them an earlier policy made for somebody; () is none."""
    feedback: NDArray[np.float32] | None = None
    """[B] scores from people, NaN where there is none."""
    features_BTDhw: Tensor | None = None
    """What the scheduling policy read, on the CPU, where that was asked for."""


class Sampler(Protocol):
    """Makes rollouts with the present weights."""

    def __call__(self, ask: Ask) -> Rollout: ...


def sample(pipe: CoGRPOPipeline, ask: Ask) -> Rollout:
    """The samples of `ask`, in calls as large as the pipeline takes and passes of its own size."""
    trajectories: list[Trajectory] = []
    pictures = []
    features: list[Tensor] = []
    for first in range(0, len(ask.seeds), MAX_IMAGES_PER_CALL):
        part = slice(first, first + MAX_IMAGES_PER_CALL)
        jobs = pipe.plan(
            list(ask.prompts[part]),
            negative_prompt=list(ask.negative_prompts[part]) or None,
            seed=list(ask.seeds[part]),
            num_inference_steps=ask.num_inference_steps,
            schedule=LEARNED,
            explore=ask.explore,
        )
        read: list[Tensor] = []

        def keep(
            _pipe: CoGRPOPipeline, _step: int, _left: int, state: dict[str, Any], read: Any = read
        ) -> None:
            read.append(state["features"].cpu())

        made = pipe.generate(jobs, keep if ask.keep_features else None)
        trajectories += made
        pictures += [np.asarray(image) for image in pipe.decode(made)]
        features += [torch.stack(read, dim=1)] if read else []
    return Rollout(
        trajectories,
        np.stack(pictures),
        features_BTDhw=torch.cat(features) if features else None,
    )


class LocalSampler:
    """Rollouts in this process, over the very weights that are trained."""

    def __init__(self, checkpoint: Checkpoint, *, samples_per_pass: int) -> None:
        self.pipe = CoGRPOPipeline(
            checkpoint, samples_per_pass=samples_per_pass, policy_version="training"
        )

    def __call__(self, ask: Ask) -> Rollout:
        return sample(self.pipe, ask)


class ActorSampler:
    """Rollouts on Ray actors, each with a copy of the model that gets the weights before each call.

    Raises RuntimeError when an actor dies or takes longer than an hour.
    """

    def __init__(self, checkpoint: Checkpoint, *, samples_per_pass: int, actors: int) -> None:
        import ray

        policy = checkpoint.schedule_policy
        assert policy is not None
        self.ray = ray
        self.checkpoint = checkpoint
        remote = ray.remote(num_cpus=1, max_restarts=1)(_RolloutActor)
        self.actors: list[Any] = [
            remote.remote(checkpoint.name, policy.config, samples_per_pass) for _ in range(actors)
        ]

    def __call__(self, ask: Ask) -> Rollout:
        policy = self.checkpoint.schedule_policy
        assert policy is not None
        plain = merged_weights(self.checkpoint.transformer)
        weights = self.ray.put((plain, policy.state_dict()))
        bounds = np.linspace(0, len(ask.seeds), len(self.actors) + 1).round().astype(int)
        calls = []
        for actor, first, last in zip(self.actors, bounds[:-1], bounds[1:], strict=True):
            if first < last:
                part = replace(
                    ask,
                    prompts=ask.prompts[first:last],
                    seeds=ask.seeds[first:last],
                    negative_prompts=ask.negative_prompts[first:last],
                )
                calls.append(actor.sample.remote(weights, part))
        try:
            parts: Sequence[Rollout] = self.ray.get(calls, timeout=ACTOR_TIMEOUT_S)
        except (self.ray.exceptions.RayError, self.ray.exceptions.GetTimeoutError) as error:
            reason = " ".join(str(error).split())[:300]
            raise RuntimeError(f"a rollout actor failed ({reason}); resume the run") from None
        kept = [part.features_BTDhw for part in parts if part.features_BTDhw is not None]
        return Rollout(
            [each for part in parts for each in part.trajectories],
            np.concatenate([part.images for part in parts]),
            features_BTDhw=torch.cat(kept) if kept else None,
        )


class _RolloutActor:
    """One copy of the model, in a process of its own."""

    def __init__(self, model: str, policy: SchedulePolicyConfig, samples_per_pass: int) -> None:
        torch.set_num_threads(1)
        device = best_device()
        checkpoint = load_checkpoint(model, device=device)
        fresh = SchedulePolicy(policy).to(device)
        self.checkpoint = replace(checkpoint, schedule_policy=fresh)
        self.sampler = LocalSampler(self.checkpoint, samples_per_pass=samples_per_pass)

    def sample(self, weights: tuple[dict[str, Any], dict[str, Any]], ask: Ask) -> Rollout:
        assert self.checkpoint.schedule_policy is not None
        self.checkpoint.transformer.load_state_dict(weights[0])
        self.checkpoint.schedule_policy.load_state_dict(weights[1])
        return self.sampler(ask)
