"""The metrics of training cycles, from their records in the data folder."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cogrpo_core.exchange.training_cycles import CycleRecord, Cycles
from cogrpo_core.exchange.training_records import RunStatus, TrainingAwayError

READ_SECONDS = 10.0
"""The records are read so often at most."""


class TrainingMetrics(Collector):
    """Every process that sees the folder says the same: take the maximum over them."""

    def __init__(self, registry: CollectorRegistry, cycles: Cycles) -> None:
        self._cycles = cycles
        self._records: list[CycleRecord] = []
        self._read = 0.0
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What is so at this moment, or was some seconds ago."""
        yield GaugeMetricFamily(
            "cogrpo_trainer_up", "Whether a trainer is at work.", self._cycles.is_attended()
        )
        records = self._newest_first()
        ended = [record for record in records if record.ended]
        by_status = Counter(record.status for record in records)
        statuses = GaugeMetricFamily(
            "cogrpo_training_cycles", "Cycles on record, by how far they are.", labels=["status"]
        )
        for status in get_args(RunStatus):
            statuses.add_metric([status], by_status[status])
        yield statuses
        yield GaugeMetricFamily(
            "cogrpo_training_promoted",
            "Cycles on record whose version became champion.",
            sum(record.promoted for record in records),
        )
        running = next((record for record in records if record.status == "running"), None)
        share = running.iteration / max(1, running.iterations) if running is not None else 0.0
        yield GaugeMetricFamily(
            "cogrpo_training_progress", "Of the running cycle's iterations, done.", share
        )
        yield GaugeMetricFamily(
            "cogrpo_training_failed_in_a_row",
            "Newest cycles that failed, one after the other.",
            next((i for i, one in enumerate(ended) if one.status != "failed"), len(ended)),
        )
        effects = (record.evaluation for record in ended if record.evaluation is not None)
        yield GaugeMetricFamily(
            "cogrpo_training_effect",
            "What the gate saw at last: the reward's mean difference to the champion.",
            _number(next(effects, {}).get("effect")),
        )
        fates = GaugeMetricFamily(
            "cogrpo_training_trajectories",
            "What became of the trajectories that the cycles on record read.",
            labels=["fate"],
        )
        counts: Counter[str] = Counter()
        for record in records:
            counts.update(record.counts)
        for fate in sorted({"trained_on", *counts} - {"prompts"}):
            fates.add_metric([fate], counts[fate])
        yield fates

    def _newest_first(self) -> list[CycleRecord]:
        """The records; those of before while the folder cannot be read."""
        if not self._read or time.monotonic() - self._read >= READ_SECONDS:
            with contextlib.suppress(TrainingAwayError):
                self._records = self._cycles.records()
            self._read = time.monotonic()
        return self._records


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
