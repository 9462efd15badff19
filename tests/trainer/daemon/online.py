"""A daemon small enough for a test: the tiny checkpoint, rewards of pixels, a real Redis."""

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from cogrpo_core.exchange.entry import Event
from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_core.exchange.policy_weights import load_version
from cogrpo_core.exchange.trajectory_log import STREAM
from cogrpo_core.models.checkpoint import Checkpoint, load_checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.trajectory import Trajectory
from cogrpo_trainer.daemon import cycle
from cogrpo_trainer.daemon.config import DaemonConfig
from cogrpo_trainer.daemon.cycle import CycleRunner
from cogrpo_trainer.daemon.daemon import Daemon, Links
from cogrpo_trainer.daemon.traffic import Traffic
from cogrpo_trainer.train.rollouts import Rollout
from cogrpo_trainer.train.run import Place, Trainer
from tests.policies import full
from tests.trainer.train.conftest import WEIGHTS, composite

STEPS = 3


class Blueness:
    """Nothing is trained on this one."""

    name = "blueness"
    version = "1"

    def __call__(self, images: Any, prompts: list[str]) -> Any:
        return images[..., 2].astype("float32").mean(axis=(1, 2))


def daemon_config(model: Path, folder: Path, **changes: Any) -> DaemonConfig:
    """Two iterations of two groups of two a phase; a gate of 20 prompts."""
    own, held_out = folder / "own.txt", folder / "held-out.txt"
    own.write_text("a red circle\na blue star\ntwo green hearts\na ring\n")
    held_out.write_text("".join(f"held out {i}\n" for i in range(20)))
    phase = {"iterations": 2, "group_size": 2, "batch_size": 4, "clip": 0.2}
    train = {
        "model": str(model),
        "prompts": str(own),
        "rewards": WEIGHTS,
        "cycles": 1,
        "num_inference_steps": STEPS,
        "rollout_batch": 4,
        "learner_batch": 4,
        "save_every": 1,
        "gate_steps": 8,
        "model_phase": phase | {"learning_rate": 1e-3} | changes.pop("model_phase", {}),
        "schedule_phase": phase
        | {"learning_rate": 1e-2, "sigma": 0.5}
        | changes.pop("schedule_phase", {}),
    }
    values = {
        "every_trajectories": 0,
        "gate": {"held_out": str(held_out), "prompts": 20} | changes.pop("gate", {}),
        "guard": {"every": 0} | changes.pop("guard", {}),
        "watch": {"pictures": 0} | changes.pop("watch", {}),
        "train": train | changes.pop("train", {}),
    }
    return DaemonConfig.model_validate(values | changes)


def make_daemon(config: DaemonConfig, data: Path, redis_url: str, **options: Any) -> Daemon:
    """A daemon over `data`; its registry is in `data`/policies."""

    def make_runner(links: Links) -> CycleRunner:
        return CycleRunner(
            config,
            data / "training",
            base=load_checkpoint(config.train.model),
            registry=links.registry,
            cycles=links.cycles,
            connection=links.connection,
            consumer=links.consumer,
            ledger=links.ledger,
            trained=composite(),
            measured=composite(blueness=Blueness()),
            stopping=links.stopping,
        )

    options = {"poll_seconds": 0.02, "reclaim_seconds": 1.0} | options
    registry = PolicyRegistry(data / "policies")
    return Daemon(config, data / "training", redis_url, make_runner, registry=registry, **options)


def two_versions(registry: PolicyRegistry, model: Checkpoint, *, better_last: bool) -> list[str]:
    """Publishes two versions, in this order or in the other: one's pictures are surely brighter."""
    numbers = [1, 2] if better_last else [2, 1]
    return [full(registry, model, number, strength=1.0) for number in numbers]


def serving(registry: PolicyRegistry, model: Checkpoint, version: str) -> CoGRPOPipeline:
    """A version as an engine has it."""
    return CoGRPOPipeline(load_version(registry, version, model), policy_version=version)


def served(pipe: CoGRPOPipeline, prompt: str, seeds: Sequence[int], **options: Any) -> list[Event]:
    """What the service would log of a request."""
    options = {"num_inference_steps": STEPS} | options
    made = pipe([prompt] * len(seeds), seed=list(seeds), output_type="tokens", **options)
    return events(made.trajectories, f"gen_{zlib.crc32(prompt.encode()):x}-{seeds[0]}", prompt)


def events(trajectories: Sequence[Trajectory], generation: str, user: str) -> list[Event]:
    return [
        Event(f"{generation}-{i}", f"req_{generation}", one, user)
        for i, one in enumerate(trajectories)
    ]


def log(connection: redis.Redis, logged: Sequence[Event]) -> None:
    for event in logged:
        connection.xadd(STREAM, dict(event.fields()))  # type: ignore[arg-type]


class Audited(Traffic):
    """Writes into the state which events its weights were trained on."""

    def __call__(self, trainer: Trainer, place: Place) -> Rollout:
        rollout = super().__call__(trainer, place)
        used = [one.entry.event_id for one in self._ledger._used.values()]
        trainer.memory["audit"] = trainer.memory.get("audit", []) + used
        return rollout


if __name__ == "__main__":  # the process that a test kills: MODEL FOLDER DATA REDIS_URL
    cycle.__dict__["Traffic"] = Audited
    model, folder, data, url = sys.argv[1:5]
    config = daemon_config(
        Path(model), Path(folder), fill=True, model_phase={"iterations": 6}, held=8
    )
    make_daemon(config, Path(data), url).run()
