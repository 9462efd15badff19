"""The settings of the trainer daemon: when it trains, from what, what a challenger must show."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cogrpo_trainer.train.config import (
    ConfigError,
    Count,
    Positive,
    Settings,
    TrainConfig,
    explain,
    load_config,
    merged,
)

EMBEDDED = "shapes"
WHO = "trainer"
"""Who the trainer is in the journal of versions."""


class Gate(Settings):
    """What a challenger must show against the champion, on held-out prompts and the same seeds."""

    held_out: str = EMBEDDED
    """`shapes` for the embedded world's suites, or a text file, one prompt a line."""
    prompts: Annotated[int, Field(ge=20, le=10_000)] = 105
    pictures: Annotated[int, Field(ge=2, le=16)] = 2
    """Of each prompt; their differences are the diversity."""
    fewer_steps: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The share of the steps at which both are compared too."""
    min_effect: Annotated[float, Field(ge=0)] = 0.0
    """In standard deviations of the champion's score, like the margin."""
    margin: Annotated[float, Field(ge=0)] = 0.3
    """How far a held-out reward, the diversity, or a reward at fewer steps may surely not fall."""
    level: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    max_slowdown: Positive = 2.0
    """The challenger's time for a picture, as a multiple of the champion's, at most: a coarse
    guard, for the machine serves meanwhile."""
    pairs: Annotated[int, Field(ge=0, le=32)] = 6
    """Pictures of both that are kept as evidence."""


class Guard(Settings):
    """Looks at held-out scores while a cycle runs."""

    every: Annotated[int, Field(ge=0)] = 6
    """Iterations between two looks; 0 never looks."""
    prompts: Annotated[int, Field(ge=4, le=1000)] = 28
    margin: Annotated[float, Field(ge=0)] = 0.3
    """A fall, in the champion's standard deviations, that is divergence when it is sure."""
    rate_factor: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """What the learning rates are multiplied by the first time."""


class Watching(Settings):
    """What a new champion serves is compared with what the former one would have made."""

    pictures: Annotated[int, Field(ge=0, le=1000)] = 64
    """Of the log, each of another prompt; fewer decide nothing. 0 never looks."""
    margin: Annotated[float, Field(ge=0)] = 0.1
    """How far the weighted reward must surely have fallen, in the former's standard deviations."""
    seconds: Positive = 3600.0
    """After a promotion; what was not judged by then stays."""

    @field_validator("pictures")
    @classmethod
    def _enough(cls, pictures: int) -> int:
        if 0 < pictures < 20:  # as the gate
            raise ValueError("0, or at least 20: fewer say nothing")
        return pictures


class DaemonConfig(Settings):
    """A trainer beside a service."""

    every_trajectories: Annotated[int, Field(ge=0)] = 512
    """A cycle begins when so many wait in the log; 0 never."""
    every_seconds: Annotated[float, Field(ge=0)] = 0.0
    """A cycle begins so long after the last one's end; 0 never."""
    fill: bool = True
    """Groups that the traffic does not give are of the training's own prompts."""
    staleness: Annotated[int, Field(ge=0, le=20)] = 1
    """Promotions since which a trajectory may have been made; of older ones the prompt is used."""
    prompts_per_user: Count = 64
    """Different prompts of one user in a cycle; callers who name no user are one."""
    held: Annotated[int, Field(ge=1, le=5000)] = 512
    """Trajectories that are in memory at most."""
    gate: Gate = Gate()
    guard: Guard = Guard()
    watch: Watching = Watching()
    suites: Annotated[dict[str, str], Field(default_factory=dict)]
    """Held-out prompts by the name that an evaluation asks for; values as `gate.held_out` has."""
    train: TrainConfig

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        train = self.train
        if train.cycles != 1:
            raise ValueError("train.cycles: a cycle of the daemon is one")
        if train.workers != 1 or train.rollout_actors or train.sharded:
            raise ValueError("train: the daemon is one process; workers and rollout_actors are not")
        return self


def load_daemon_config(model: str, file: Path | None = None) -> DaemonConfig:
    """The settings for a model, overlaid with a TOML file. Raises `ConfigError`.

    `preset` in the file names the settings of `cogrpo train` that [train] is laid over.
    """
    preset = "shapes" if model == EMBEDDED else "meissonic-1b"
    values: dict[str, Any] = {}
    if model == EMBEDDED:
        text = (files("cogrpo_trainer.daemon") / "presets" / "shapes.toml").read_text()
        values = tomllib.loads(text)
    if file is not None:
        try:
            given = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise ConfigError(f"{file}: not valid TOML ({error})") from None
        preset = str(given.pop("preset", preset))
        values = merged(values, given)
    train = load_config(preset).model_dump(mode="json") | {"cycles": 1}
    values["train"] = merged(train, values.get("train", {})) | {"model": model}
    try:
        return DaemonConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
