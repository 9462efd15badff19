"""One cycle of the online loop: train from the champion, judge, publish, promote or reject.

It can be killed at any moment: the next start goes on from the last state (ledger.py says why
nothing is trained on twice). Everything of a cycle under way is in `runs/ID/`.
"""

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis

from cogrpo_core.exchange.policy_announce import announce
from cogrpo_core.exchange.policy_journal import Move
from cogrpo_core.exchange.policy_registry import PolicyRegistry, RegistryError
from cogrpo_core.exchange.policy_weights import load_version
from cogrpo_core.exchange.training_cycles import BASE, CycleRecord, Cycles
from cogrpo_core.exchange.trajectory_consumer import TrajectoryConsumer
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.rewards.composite import Composite
from cogrpo_trainer.daemon.challenger import (
    present,
    publish_challenger,
    published,
    settle_challenger,
)
from cogrpo_trainer.daemon.config import DaemonConfig
from cogrpo_trainer.daemon.evaluator import Evaluator
from cogrpo_trainer.daemon.guards import Guard
from cogrpo_trainer.daemon.ledger import Ledger
from cogrpo_trainer.daemon.live_reward import LiveReward
from cogrpo_trainer.daemon.traffic import Traffic
from cogrpo_trainer.daemon.verdict import judge_challenger
from cogrpo_trainer.train.config import TrainConfig
from cogrpo_trainer.train.run import Trainer, place_of

logger = logging.getLogger(__name__)


class CancelledError(Exception):
    """Somebody asked for the cycle's end."""


class StoppedError(Exception):
    """The process is to stop; the cycle goes on at the next start."""


class CycleRunner:
    """Runs cycles of one base model. `stopping()` says whether the process is to end."""

    def __init__(
        self,
        config: DaemonConfig,
        training_dir: Path,
        *,
        base: Checkpoint,
        registry: PolicyRegistry,
        cycles: Cycles,
        connection: redis.Redis,
        consumer: TrajectoryConsumer,
        ledger: Ledger,
        trained: Composite,
        measured: Composite,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`trained` scores what is learned from, `measured` also what is held out."""
        self.evaluator = Evaluator(config, base=base, registry=registry, measured=measured)
        self.live_reward = LiveReward(config, base=base, registry=registry, trained=trained)
        self._config = config
        self._training_dir = training_dir
        self._base = base
        self._registry = registry
        self._cycles = cycles
        self._connection = connection
        self._consumer = consumer
        self._ledger = ledger
        self._trained = trained
        self._measured = measured
        self._stopping = stopping

    def run(self, record: CycleRecord) -> CycleRecord:
        """Does the cycle, from its last state; gives its last record, which has been written.

        Raises `CancelledError`, `StoppedError`, and whatever went wrong.
        """
        if record.status == "queued":
            parent = self._registry.aliases().champion or BASE
            record = record.model_copy(update={"parent": parent, "started": int(time.time())})
        train = self._train_config(record)
        record = self._write(record, status="running", iterations=train.iterations)
        parent_id = None if record.parent == BASE else record.parent
        champion = self._base
        if parent_id is not None:
            champion = load_version(self._registry, parent_id, self._base)
        version = published(self._registry, record.id)
        if version is None:
            trainer, record = self._train(record, train, champion)
            record = self._write(record, phase="evaluation")
            made = present(trainer)
            judged = judge_challenger(
                CoGRPOPipeline(champion),
                CoGRPOPipeline(made),
                self._measured,
                self._config,
                against=record.parent,
                look=lambda: self._look(record),
            )
            version = publish_challenger(
                self._registry,
                self._base,
                made,
                judged,
                cycle_id=record.id,
                parent=parent_id,
                schedule_alone=all(part == "schedule" for part, count in train.phases if count),
                training={"trigger": record.trigger, "config": train.model_dump(mode="json")},
            )
        outcome = settle_challenger(
            self._registry,
            version,
            parent=parent_id,
            tell=lambda move: announce(self._connection, move),
        )
        return self._write(
            record,
            status="completed",
            phase=None,
            finished=int(time.time()),
            policy_version=outcome.version,
            promoted=outcome.promoted,
            evaluation=version.manifest.evidence["evaluation"],
            detail=outcome.why,
        )

    def folder(self, cycle_id: str) -> Path:
        """Where the states of a cycle lie."""
        return self._training_dir / "runs" / cycle_id

    def _train_config(self, record: CycleRecord) -> TrainConfig:
        """The settings of this cycle: N_m and N_s as they were asked for."""
        train = self._config.train
        changes: dict[str, Any] = {}
        for name in ("model", "schedule"):
            count = getattr(record, f"{name}_iterations")
            if count is not None:
                phase = getattr(train, f"{name}_phase")
                changes[f"{name}_phase"] = phase.model_dump() | {"iterations": count}
        return TrainConfig.model_validate(train.model_dump() | changes)

    def _train(
        self, record: CycleRecord, train: TrainConfig, champion: Checkpoint
    ) -> tuple[Trainer, CycleRecord]:
        traffic = Traffic(
            self._connection,
            self._consumer,
            self._ledger,
            self._config,
            champion,
            self._fresh(champion),
        )
        trainer = Trainer(
            train,
            self.folder(record.id),
            self._trained,
            checkpoint=replace(champion, transformer=copy.deepcopy(champion.transformer)),
            source=traffic,
        )
        self._ledger.remember(trainer.memory.get("ledger", {}))
        traffic.pool.remember(trainer.memory.get("pool", {}))
        guard = Guard(trainer, self._measured, self._config, look=lambda: self._look(record))
        counts = dict(trainer.memory.get("counts", {}))
        try:
            while trainer.iteration < train.iterations:
                self._look(record)
                for line in guard.check():
                    logger.warning("%s: %s; the learning rates are lowered", record.id, line)
                place = place_of(train, trainer.iteration)
                phase = "schedule" if place.part == "schedule" else "model"
                record = self._write(record, phase=phase, iteration=trainer.iteration)
                trainer.step()
                if (
                    trainer.iteration % train.save_every == 0
                    or trainer.iteration == train.iterations
                ):
                    now = {k: counts.get(k, 0) + v for k, v in traffic.pool.counts.items()}
                    trainer.memory |= {
                        "ledger": self._ledger.memory(),
                        "pool": traffic.pool.memory(),
                        "counts": counts | now,
                    }
                    trainer.save()
                    self._ledger.saved()
                    record = self._write(
                        record, iteration=trainer.iteration, counts=trainer.memory["counts"]
                    )
                    traffic.settle()
        finally:
            traffic.release()
        return trainer, record

    def _fresh(self, champion: Checkpoint) -> Mapping[str, bool]:
        """Policies whose trajectories are trained on: the champion, and those just before it."""
        fresh = {champion.fingerprint: champion.schedule_policy is not None}
        moves = (
            entry
            for entry in self._registry.history(10_000)
            if isinstance(entry, Move) and entry.alias == "champion"
        )
        for _, move in zip(range(self._config.staleness), moves):
            if move.was is None:
                fresh.setdefault(self._base.fingerprint, self._base.schedule_policy is not None)
            else:
                with contextlib.suppress(RegistryError):  # it was removed meanwhile
                    manifest = self._registry.manifest(move.was)
                    fresh.setdefault(manifest.fingerprint, manifest.schedule_policy is not None)
        return fresh

    def _look(self, record: CycleRecord) -> None:
        if self._stopping():
            raise StoppedError
        if self._cycles.is_cancelled(record.id):
            raise CancelledError

    def _write(self, record: CycleRecord, **changes: Any) -> CycleRecord:
        changed = record.model_copy(update=changes)
        if changed != record:
            self._cycles.write(changed)
        return changed
