"""The settings of a training run: typed, checked, from a preset, a TOML file and the command line.

An unknown key is an error, and so is a value that cannot work; each says why.
"""

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cogrpo_core.schedule import ACTION_COLUMNS

Part: TypeAlias = Literal["model", "schedule", "joint"]
Mode: TypeAlias = Literal["alternate", "joint", "model-only", "schedule-only"]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class ConfigError(ValueError):
    """Settings that cannot be used, in one line."""


class Settings(BaseModel):
    """What all parts have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Phase(Settings):
    """One phase of a cycle: what is trained there has its own optimiser, batch and clip."""

    iterations: Annotated[int, Field(ge=0)]
    """Of this phase in one cycle: N_m or N_s."""
    learning_rate: Positive
    warmup: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps over which the rate rises to `learning_rate`, in equal parts. Adam's first
    steps are the largest, whatever their gradients' noise is."""
    decay: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps after the warm-up over which the rate falls to zero, where it stays; 0 keeps
    it. What is near a reward's ceiling learns little but noise."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    group_size: Annotated[int, Field(ge=1)]
    """G, the samples of one prompt."""
    batch_size: Count
    """Trajectories of an iteration, all groups together."""
    clip: Annotated[float, Field(gt=0, lt=1)]
    updates: Count = 1
    """Optimiser steps that one iteration's trajectories are split into."""
    step_share: Share = 1.0
    """The share of each trajectory's steps that is trained on; 1 is all of them."""
    steps: tuple[Annotated[int, Field(ge=-256, le=255)], ...] = ()
    """The steps of a trajectory that are trained on, from 0, or from the end where negative; () is
    all of them."""

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}: an advantage compares a sample with its group, "
                "so a group needs at least 2"
            )
        if self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of group_size {self.group_size}"
            )
        return self

    @property
    def groups(self) -> int:
        """Prompts of an iteration."""
        return self.batch_size // self.group_size

    def trained_steps(self, num_steps: int) -> list[int]:
        """Which of T steps are trained on; all of them where T has none of those that are named."""
        named = {step % num_steps for step in self.steps if -num_steps <= step < num_steps}
        return sorted(named) or list(range(num_steps))


class ModelPhase(Phase):
    """The model's phase, the schedule frozen at its mean."""

    ratio: Literal["product", "geometric_mean", "token"] = "product"
    """How token ratios become the step's; the paper's is the product."""
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    """Train low-rank additions to the blocks' matrices and nothing else; 0 trains the weights."""
    blocks_only: bool = False
    """Whether the transformer's blocks alone are trained, and embeddings and head stay."""


class SchedulePhase(Phase):
    """The schedule's phase, the model frozen."""

    sigma: Annotated[float, Field(gt=0, le=10)] = 0.3
    """The standard deviation of exploring actions."""
    actions: Annotated[tuple[str, ...], Field(min_length=1)] = ACTION_COLUMNS
    """The actions that the policy moves; the others stay the base schedule's."""
    keep_features: bool = False
    """Whether a rollout keeps what the policy reads, and the learner needs no pass of the model;
    the memory plan says what that takes."""

    @model_validator(mode="after")
    def _actions_are_known(self) -> Self:
        for name in self.actions:
            if name not in ACTION_COLUMNS:
                raise ValueError(f"unknown action {name!r}; known are {', '.join(ACTION_COLUMNS)}")
        return self


class TrainConfig(Settings):
    """A whole run."""

    model: str = "shapes"
    """The checkpoint to begin with: an embedded name, a folder or a Hub id."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    mode: Mode = "alternate"
    """`joint` trains both parts at once, each at the steps of its own phase, in batches of the
    model's; `model-only` is Naive GRPO."""
    cycles: Count = 3
    num_inference_steps: Annotated[int, Field(ge=1, le=256)] = 48
    """T of the rollouts."""
    prompts: str | Annotated[tuple[str, ...], Field(min_length=1)] = "shapes"
    """`shapes` for the embedded world's training prompts, or one or several files of prompts."""
    rewards: Annotated[dict[str, float], Field(min_length=1)]
    """Reward names and their weights in the advantage."""
    feedback_weight: Annotated[float, Field(ge=0)] = 0.0
    """The weight of people's scores, where trajectories from the service have them."""
    most_weight: Annotated[float, Field(ge=1)] = 2.0
    """What the importance weight of a step that an earlier policy made is cut at."""
    min_spread: Annotated[float, Field(ge=0)] = 0.0
    """A reward's standard deviation in a group at or below which the group is dropped for it."""
    reward_timeout_s: Positive = 120.0
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    """beta: the weight of the KL to the model that the run began with."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the weights that are exported and evaluated, by iteration; 0 takes the latest."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    max_grad_norm: Positive = 1.0
    gate: Positive = 1e-4
    """The largest gap between logged and recomputed log-probability, of a token or an action.

    That of tokens is multiplied by what guidance and temperature do to differences of logits."""
    gate_steps: Count = 32
    """Steps that the gate recomputes at each iteration."""
    max_skipped: Count = 3
    """Updates in a row that may be skipped as not finite before the run stops."""
    max_gradient: Positive = 1e4
    """A gradient norm beyond which an update counts as exploding, and is skipped."""
    rollout_batch: Count = 16
    """Samples of one forward pass of the sampler."""
    learner_batch: Count = 16
    """Steps of one forward pass of the learner; gradients of several are accumulated."""
    rollout_actors: Annotated[int, Field(ge=0, le=1024)] = 0
    """Ray actors that make the rollouts; 0 makes them in this process."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Learners that share each batch under Ray Train."""
    sharded: bool = False
    """Several learners hold a part of the model's weights each (FSDP2) and not all of them."""
    save_every: Count = 5
    """Iterations between checkpoints."""
    image_every: Annotated[int, Field(ge=0)] = 10
    """Iterations between picture grids in TensorBoard; 0 draws none."""
    model_phase: ModelPhase
    schedule_phase: SchedulePhase

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not any(weight > 0 for weight in self.rewards.values()):
            raise ValueError("rewards: no reward has a positive weight, so nothing can be learned")
        for phase in (self.model_phase, self.schedule_phase):
            if phase.groups % self.workers:
                raise ValueError(
                    f"workers: {self.workers} cannot share {phase.groups} groups of a batch evenly"
                )
        if not sum(count for _, count in self.phases):
            raise ValueError(f"mode {self.mode!r} with these iterations trains nothing")
        if self.sharded and (self.mode == "joint" or self.rollout_actors):
            raise ValueError("sharded: neither joint training nor rollout actors can be sharded")
        if self.model_phase.lora_rank:
            if self.mode == "joint":
                raise ValueError("lora_rank: joint training takes whole weights only")
            if self.model_phase.blocks_only:
                raise ValueError("blocks_only: low-rank additions are to the blocks alone anyway")
        return self

    @property
    def phases(self) -> list[tuple[Part, int]]:
        """One cycle: its phases in order, and their iterations."""
        model, schedule = self.model_phase.iterations, self.schedule_phase.iterations
        if self.mode == "alternate":
            return [("model", model), ("schedule", schedule)]
        if self.mode == "joint":
            return [("joint", model + schedule)]
        return [("model", model)] if self.mode == "model-only" else [("schedule", schedule)]

    @property
    def iterations(self) -> int:
        """Of the whole run."""
        return self.cycles * sum(count for _, count in self.phases)


def presets() -> list[str]:
    """The names that `load_config` knows."""
    folder = files("cogrpo_trainer.train") / "presets"
    return sorted(
        each.name.removesuffix(".toml") for each in folder.iterdir() if ".toml" in each.name
    )


def load_config(
    preset: str, file: Path | None = None, overrides: Sequence[str] = ()
) -> TrainConfig:
    """The preset, overlaid with a TOML file and then with `part.key=value` settings.

    Values of overrides are TOML (`0.1`, `true`, `["a"]`), or else text. Raises `ConfigError`.
    """
    if preset not in presets():
        raise ConfigError(f"unknown preset {preset!r}; known are {', '.join(presets())}")
    text = (files("cogrpo_trainer.train") / "presets" / f"{preset}.toml").read_text()
    values = tomllib.loads(text)
    if file is not None:
        try:
            values = merged(values, tomllib.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise ConfigError(f"{file}: not valid TOML ({error})") from None
    for override in overrides:
        values = merged(values, _parsed(override))
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def _parsed(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{override!r} is not of the form part.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`; of rewards, the whole set is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        nested = isinstance(value, dict) and isinstance(old, dict) and key != "rewards"
        result[key] = merged(old, value) if nested else value  # type: ignore[arg-type]
    return result


def explain(error: ValidationError) -> str:
    """The first fault, with its setting."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown setting {field!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message
