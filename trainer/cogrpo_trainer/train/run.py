"""`cogrpo train`: the alternating cycle of Co-GRPO (section 4.2) over rollouts, with exact resume.

Each iteration is a function of the run's seed, its number and the weights, so that a run that was
killed and resumed gives the weights of one that was not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cogrpo_core.grpo.advantages import Advantages, advantages
from cogrpo_core.grpo.batch import TrajectoryBatch, collate
from cogrpo_core.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cogrpo_core.models.schedule_policy import SchedulePolicy, SchedulePolicyConfig
from cogrpo_core.rewards.composite import BatchScores, Composite
from cogrpo_core.schedule import ACTION_COLUMNS
from cogrpo_trainer.state import (
    StateError,
    load_state,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)
from cogrpo_trainer.tensors import copy_into, whole
from cogrpo_trainer.train.conditions import Conditions
from cogrpo_trainer.train.config import Part, TrainConfig
from cogrpo_trainer.train.fleet import Fleet, shard
from cogrpo_trainer.train.gate import GateReport, check_ratio
from cogrpo_trainer.train.learner import Learner, UpdateReport
from cogrpo_trainer.train.lora import BLOCKS, add_lora, merged_weights
from cogrpo_trainer.train.offpolicy import as_of_now
from cogrpo_trainer.train.prompts import Prompts, rollout_seeds
from cogrpo_trainer.train.rollouts import ActorSampler, Ask, LocalSampler, Rollout, Sampler
from cogrpo_trainer.train.weights import Average, Trained


@dataclass(frozen=True)
class Place:
    """Where in the run an iteration stands."""

    iteration: int
    cycle: int
    part: Part
    in_phase: int
    """Counted within its phase of its cycle."""


@dataclass(frozen=True)
class Experience:
    """The samples of an iteration, and what is learned from them."""

    rollout: Rollout
    scores: BatchScores
    advantages: Advantages
    batch: TrajectoryBatch
    conditions: Conditions

    @property
    def advantage_B(self) -> Tensor:
        """Of each sample."""
        return self.advantages.value_PG.flatten().to(self.batch.tokens_BN.device)

    @property
    def valid_B(self) -> Tensor:
        """Which samples carry a signal."""
        return self.advantages.valid_PG.flatten().to(self.batch.tokens_BN.device)


@dataclass(frozen=True)
class Iteration:
    """What one iteration did, for whoever watches."""

    place: Place
    rollout: Rollout
    scores: BatchScores
    advantages: Advantages
    gate: GateReport
    updates: list[UpdateReport] = field(default_factory=list)


FEEDBACK = "feedback"
"""The name of people's scores among the rewards."""
MAY_CHANGE = (
    "cycles",
    "gate_steps",
    "image_every",
    "max_skipped",
    "reward_timeout_s",
    "rollout_actors",
    "save_every",
    "workers",
)
"""Settings that a resumed run may have other values of: they do not change what is learned."""

Watch = Callable[[Iteration], None]
Source = Callable[["Trainer", Place], Rollout]
"""Gives the groups of an iteration, in place of the run's own prompts; several share a batch."""


def place_of(config: TrainConfig, iteration: int) -> Place:
    """The cycle and phase of an iteration: N_m of the model, then N_s of the schedule, again."""
    cycle, rest = divmod(iteration, config.iterations // config.cycles)
    for part, count in config.phases:
        if rest < count:
            return Place(iteration, cycle, part, rest)
        rest -= count
    raise AssertionError("iterations of a cycle add up")


class Trainer:
    """A run: its weights, learners and sampler, and the state that they are saved in."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        composite: Composite,
        *,
        checkpoint: Checkpoint | None = None,
        fleet: Fleet | None = None,
        device: torch.device | str = "cpu",
        source: Source | None = None,
    ) -> None:
        self.config = config
        self.source = source
        self.folder = folder
        self.composite = composite
        self.fleet = fleet or Fleet()
        self.prompts = Prompts(config.prompts)
        checkpoint = checkpoint or load_checkpoint(config.model, device=device)
        self.prompts.shortened = checkpoint.text_encoder.shortened
        self.checkpoint = replace(checkpoint, schedule_policy=fresh_policy(checkpoint, config))
        self.device = next(checkpoint.transformer.parameters()).device
        assert self.checkpoint.schedule_policy is not None
        transformer = self.checkpoint.transformer.requires_grad_(True)
        reference = None
        if config.kl_weight and config.mode != "schedule-only":
            reference = type(transformer)(transformer.config).to(self.device)
            reference.load_state_dict(transformer.state_dict())
            reference.requires_grad_(False)
        if config.model_phase.blocks_only:
            transformer.requires_grad_(False)
            for name in BLOCKS:
                transformer.get_submodule(name).requires_grad_(True)
        if config.model_phase.lora_rank:
            transformer.requires_grad_(False)
            torch.manual_seed(config.seed)
            add_lora(transformer, config.model_phase.lora_rank)
        if config.sharded and self.fleet.world > 1:
            shard(transformer)
        self.trained = Trained(transformer, self.checkpoint.schedule_policy)
        parts = dict.fromkeys(part for part, count in config.phases if count)
        self.learners = {
            part: Learner(
                part, transformer, self.checkpoint.schedule_policy, config, self.fleet, reference
            )
            for part in parts
        }
        self.average = Average(self.trained, config.ema)
        self.sampler = self._sampler()
        self.iteration = 0
        self.memory: dict[str, Any] = {}
        """What a caller wants saved and restored with the weights, as JSON."""
        self._restore()

    def run(self, watch: Watch = lambda _: None, until: int | None = None) -> None:
        """Goes on from the last saved state to the end of the last cycle, or to iteration `until`,
        which is not made."""
        end = self.config.iterations if until is None else until
        while self.iteration < end:
            watch(self.step())
            done = self.iteration
            if done % self.config.save_every == 0 or done == end:
                self.save()

    def collect(self, place: Place) -> Experience:
        """The rollout of an iteration with its rewards and advantages."""
        config, phase = self.config, self.learners[place.part].phase
        rollout = self.source(self, place) if self.source else self.sampler(self._ask(place))
        prompts = [each.prompt for each in rollout.trajectories]
        scores = self.composite.score(rollout.images, prompts)
        known, weights = {name: scores.by_reward[name] for name in config.rewards}, config.rewards
        if rollout.feedback is not None and config.feedback_weight:
            known = known | {FEEDBACK: rollout.feedback}
            weights = weights | {FEEDBACK: config.feedback_weight}
        grouped = {
            name: torch.tensor(values).view(-1, phase.group_size) for name, values in known.items()
        }
        judged = advantages(grouped, weights, min_spread=config.min_spread)
        batch = collate(rollout.trajectories, rollout.features_BTDhw).to(self.device)
        conditions = Conditions(self.checkpoint, rollout.trajectories)
        if any(rollout.live):
            batch = as_of_now(
                self.checkpoint,
                batch,
                conditions,
                torch.tensor(rollout.live),
                part=place.part,
                config=config,
            )
        return Experience(rollout, scores, judged, batch, conditions)

    def step(self) -> Iteration:
        """One iteration: rollout, rewards, gate, updates."""
        config, place = self.config, place_of(self.config, self.iteration)
        found = self.collect(place)
        generator = torch.Generator().manual_seed(_mixed(config.seed, place.iteration))
        gate = check_ratio(
            self.checkpoint,
            found.batch,
            found.conditions,
            floor=config.gate,
            steps=config.gate_steps,
            batch_size=config.learner_batch,
            generator=generator,
        )
        updates = self.learners[place.part].updates(
            found.batch, found.advantage_B, found.valid_B, found.conditions, generator
        )
        done = Iteration(place, found.rollout, found.scores, found.advantages, gate, list(updates))
        self.average.update()
        self.iteration += 1
        return done

    def save(self) -> None:
        """Writes the state atomically; several learners call it, and the first of them writes."""
        parts: dict[str, dict[str, Tensor]] = {
            "weights": whole(self.trained.parameters()),
            "average": whole(self.average.values),
        }
        for part, learner in self.learners.items():
            for i, optimizer in enumerate(learner.optimizers):
                parts[f"optimizer-{part}-{i}"] = whole(optimizer_tensors(optimizer))
        if self.fleet.rank:
            return
        notes = self._notes() | {"memory": self.memory}
        save_state(self.folder / "state", self.iteration, parts, notes)

    def export(self, folder: Path) -> None:
        """Writes the averaged model and schedule as a checkpoint folder, as `save` does."""
        checkpoint = self.checkpoint
        with self.trained.swapped(self.average.values):
            weights = whole(merged_weights(checkpoint.transformer))
            if self.fleet.rank:
                return
            plain = type(checkpoint.transformer)(checkpoint.transformer.config)
            plain.load_state_dict(weights)
            save_checkpoint(
                folder,
                transformer=plain,
                vqvae=checkpoint.vqvae,
                text_encoder=checkpoint.text_encoder,
                schedule_policy=checkpoint.schedule_policy,
                generation=checkpoint.generation.model_copy(
                    update={"num_inference_steps": self.config.num_inference_steps}
                ),
            )

    def _ask(self, place: Place) -> Ask:
        """This learner's share of the iteration's samples: whole groups."""
        config, phase = self.config, self.learners[place.part].phase
        seed = config.seed
        prompts = self.prompts.draw(phase.groups, seed=seed, iteration=place.iteration)
        seeds = rollout_seeds(phase.batch_size, seed=seed, iteration=place.iteration)
        repeated = [prompt for prompt in prompts for _ in range(phase.group_size)]
        share = phase.batch_size // self.fleet.world
        mine = slice(self.fleet.rank * share, (self.fleet.rank + 1) * share)
        return Ask(
            tuple(repeated[mine]),
            tuple(seeds[mine]),
            config.num_inference_steps,
            explore=place.part != "model",
            keep_features=place.part != "model" and config.schedule_phase.keep_features,
        )

    def _sampler(self) -> Sampler:
        config = self.config
        if config.rollout_actors:
            return ActorSampler(
                self.checkpoint,
                samples_per_pass=config.rollout_batch,
                actors=config.rollout_actors,
            )
        return LocalSampler(self.checkpoint, samples_per_pass=config.rollout_batch)

    def _notes(self) -> dict[str, Any]:
        return {
            "base": self.checkpoint.fingerprint,
            "config": self.config.model_dump(mode="json", exclude=set(MAY_CHANGE)),
        }

    def _restore(self) -> None:
        """Goes back to the last saved state, if there is one of this very run."""
        saved = load_state(self.folder / "state")
        if saved is None:
            return
        parts = saved.parts
        for name, now in self._notes().items():
            if saved.notes.get(name) != now:
                what = _difference(saved.notes.get(name), now)
                raise StateError(
                    f"{self.folder}: holds a run with another {name}{what}; "
                    "choose another folder, or the same settings to go on"
                )
        names = {"weights", "average"} | {
            f"optimizer-{part}-{i}"
            for part, learner in self.learners.items()
            for i in range(len(learner.optimizers))
        }
        if parts.keys() != names:
            raise StateError(f"{self.folder}: the saved state holds {sorted(parts)}")
        copy_into(self.trained.parameters(), parts["weights"])
        copy_into(self.average.values, parts["average"])
        for part, learner in self.learners.items():
            for i, optimizer in enumerate(learner.optimizers):
                restore_optimizer(optimizer, parts[f"optimizer-{part}-{i}"])
        self.iteration = saved.step
        self.memory = saved.notes.get("memory", {})


def fresh_policy(checkpoint: Checkpoint, config: TrainConfig) -> SchedulePolicy:
    """The checkpoint's scheduling policy or an untrained one, with the run's sigma and actions."""
    changes = {
        "sigma": config.schedule_phase.sigma,
        "active": tuple(name in config.schedule_phase.actions for name in ACTION_COLUMNS),
    }
    old = checkpoint.schedule_policy
    shape = old.config if old else SchedulePolicyConfig.for_width(checkpoint.transformer.config.dim)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        policy = SchedulePolicy(shape.model_copy(update=changes))
    if old is not None:
        policy.load_state_dict(old.state_dict())
    device = next(checkpoint.transformer.parameters()).device
    return policy.to(device)


def _mixed(seed: int, iteration: int) -> int:
    return int(np.random.default_rng([seed, iteration, 3]).integers(0, 2**63))


def _difference(old: Any, new: Any) -> str:
    """The first setting that differs, for a message."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return ""
    for key, path in _leaves(new):
        before = old
        for part in path[:-1]:
            before = before.get(part, {}) if isinstance(before, dict) else {}
        value = before.get(path[-1]) if isinstance(before, dict) else None
        if value != key:
            return f" ({'.'.join(path)} was {value}, is {key})"
    return ""


def _leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, list[str]]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield value, [*path, name]
