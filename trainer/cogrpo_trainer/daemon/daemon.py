"""The trainer daemon: waits for a trigger, runs the cycle, and writes down how it ended.

It holds nothing while it waits: models are loaded when a cycle begins. State and records are on
disk, so it can be killed and started again at any moment.
"""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cogrpo_core.exchange.policy_evaluations import EvaluationRecord, Evaluations
from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_core.exchange.training_cycles import CycleBusyError, CycleRecord, Cycles
from cogrpo_core.exchange.training_records import TrainingAwayError
from cogrpo_core.exchange.trajectory_consumer import TrajectoryConsumer
from cogrpo_core.exchange.trajectory_log import TrajectoryLogError, connect
from cogrpo_trainer.daemon.config import DaemonConfig
from cogrpo_trainer.daemon.ledger import Ledger
from cogrpo_trainer.daemon.watch import Watch, Watched
from cogrpo_trainer.train.config import explain

if TYPE_CHECKING:
    import redis

    from cogrpo_trainer.daemon.cycle import CycleRunner

MAX_ATTEMPTS = 3
"""An error throws a cycle back to its last state; after so many it has failed."""
POLL_SECONDS = 0.5
COUNT_SECONDS = 5.0
"""Between two looks at how many trajectories wait."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Links:
    """What a cycle is given of the daemon."""

    connection: "redis.Redis"
    consumer: TrajectoryConsumer
    ledger: Ledger
    cycles: Cycles
    registry: PolicyRegistry
    stopping: Callable[[], bool]


MakeRunner = Callable[[Links], "CycleRunner"]
"""Loads models and rewards; called when the first cycle begins."""


class Daemon:
    """One trainer of one data folder. `run` returns when `stop` was called."""

    def __init__(
        self,
        config: DaemonConfig,
        training_dir: Path,
        redis_url: str,
        make_runner: MakeRunner,
        *,
        registry: PolicyRegistry,
        name: str = "trainer",
        poll_seconds: float = POLL_SECONDS,
        reclaim_seconds: float = 60.0,
    ) -> None:
        """`name` is the consumer's in the group: the same after a restart, and nobody else's."""
        self._config = config
        self._training_dir = training_dir
        self._make_runner = make_runner
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._cycles = Cycles(training_dir)
        self._evaluations = Evaluations(training_dir)
        connection = connect(redis_url)
        self._links = Links(
            connection,
            TrajectoryConsumer(connection, name, reclaim_seconds=reclaim_seconds),
            Ledger(),
            self._cycles,
            registry,
            self._stop.is_set,
        )
        self._watch = Watch(config, registry, connection, training_dir)
        self._runner: CycleRunner | None = None
        self._last_end = time.monotonic()
        self._next_count = 0.0

    def stop(self) -> None:
        """Ends `run` at the next iteration; a cycle under way goes on at the next start."""
        self._stop.set()

    def run(self) -> None:
        """Runs cycles until `stop`. Raises `TrainingAwayError` where another trainer is at work."""
        with self._cycles.attending() as ours:
            if not ours:
                raise TrainingAwayError(f"another trainer is at work in {self._training_dir}")
            self._recover()
            said = ""
            while not self._stop.is_set():
                try:
                    if self._turn():
                        continue
                    said = ""
                except TrainingAwayError as error:
                    if str(error) != said:  # it is the same every turn, until somebody mends it
                        said = str(error)
                        logger.error("%s", said)
                self._stop.wait(self._poll_seconds)

    def _recover(self) -> None:
        """What former lives trained on and did not acknowledge."""
        for manifest in self._training_dir.glob("runs/*/state/manifest.json"):
            try:
                memory = json.loads(manifest.read_text())["notes"].get("memory", {})
            except (OSError, ValueError, KeyError) as error:
                logger.error("the state of %s is damaged (%s)", manifest.parts[-3], error)
                continue
            self._links.ledger.remember(memory.get("ledger", {}))

    def _turn(self) -> bool:
        """Does what is due: a cycle under way, an evaluation, a look at the champion, a cycle."""
        self._tidy()
        record = self._cycles.unfinished()
        if record is None or record.status == "queued":
            if (wanted := self._evaluations.next()) is not None:
                self._evaluate(wanted)
                return True
            if (watched := self._watch.due()) is not None:
                self._judge(watched)
                return True
            record = record or self._due()
        if record is None:
            return False
        self._do(record)
        self._tidy()
        return True

    def _due(self) -> CycleRecord | None:
        """A new cycle, where it is time for it."""
        try:
            if self._is_time():
                return self._cycles.request("interval")
            if self._is_enough():
                return self._cycles.request("trajectories")
        except CycleBusyError:  # somebody was faster
            return self._cycles.unfinished()
        return None

    def _is_time(self) -> bool:
        seconds = self._config.every_seconds
        return bool(seconds) and time.monotonic() - self._last_end >= seconds

    def _is_enough(self) -> bool:
        wanted = self._config.every_trajectories
        if not wanted or time.monotonic() < self._next_count:
            return False
        self._next_count = time.monotonic() + COUNT_SECONDS
        try:
            return self._links.consumer.waiting() >= wanted
        except TrajectoryLogError:
            return False

    def _do(self, record: CycleRecord) -> None:
        """One try of a cycle; how it ended is in its record."""
        try:
            if self._cycles.is_cancelled(record.id):
                self._end(record.id, "cancelled", "cancelled", "the cycle was cancelled")
                return
            ended = self._loaded().run(record)
            logger.info(
                "%s made %s: %s", ended.id, ended.policy_version, ended.detail or "promoted"
            )
        except Exception as error:
            self._fail(record.id, error)
        self._last_end = time.monotonic()
        self._next_count = 0.0

    def _loaded(self) -> "CycleRunner":
        """With models and rewards in memory."""
        if self._runner is None:
            self._runner = self._make_runner(self._links)
        return self._runner

    def _evaluate(self, record: EvaluationRecord) -> None:
        """One try of an evaluation; how it ended is in its record."""
        from cogrpo_trainer.daemon.cycle import CancelledError, StoppedError
        from cogrpo_trainer.daemon.evaluator import EvaluationError

        def look() -> None:
            if self._stop.is_set():
                raise StoppedError
            if self._evaluations.is_cancelled(record.version):
                raise CancelledError

        begun = record.model_copy(
            update={
                "status": "running",
                "started": int(time.time()),
                "attempts": record.attempts + 1,
            }
        )
        ended: dict[str, Any]
        try:
            look()
            if record.attempts >= MAX_ATTEMPTS:
                raise EvaluationError("failed", f"it was begun {record.attempts} times")
            self._evaluations.write(begun)
            facts = self._loaded().evaluator.evaluate(begun, look)
            ended = {"status": "completed", "facts": facts}
        except StoppedError:  # it is done at the next start, and did not fail
            self._evaluations.write(record)
            return
        except CancelledError:
            detail = "the evaluation was cancelled"
            ended = {"status": "cancelled", "code": "cancelled", "detail": detail}
        except EvaluationError as error:
            logger.warning("evaluation of %s: %s", record.version, error.__cause__ or error)
            ended = {"status": "failed", "code": error.code, "detail": str(error)}
        except TrainingAwayError:
            raise
        except Exception as error:
            logger.exception("evaluation of %s: an error", record.version)
            ended = {"status": "failed", "code": "failed", "detail": _one_line(error)[:1000]}
        self._evaluations.write(begun.model_copy(update=ended | {"finished": int(time.time())}))
        logger.info("evaluation of %s: %s", record.version, ended["status"])

    def _judge(self, watched: Watched) -> None:
        """Whether the champion serves worse pictures than the former one; it is taken back then."""
        from cogrpo_trainer.daemon.cycle import StoppedError

        def look() -> None:
            if self._stop.is_set():
                raise StoppedError

        move = watched.move
        assert move.to is not None
        try:
            found = self._loaded().live_reward.compare(move.to, move.was, watched.entries, look)
        except StoppedError:
            return
        except Exception as error:  # it is judged once: what failed would fail again
            logger.exception("version %s cannot be watched", move.to)
            self._watch.settle(move, None, {"error": _one_line(error)[:1000]})
            return
        if found is not None:
            self._watch.settle(move, found.why, found.facts)

    def _fail(self, cycle_id: str, error: Exception) -> None:
        from cogrpo_trainer.daemon.cycle import CancelledError, StoppedError
        from cogrpo_trainer.daemon.guards import DivergedError
        from cogrpo_trainer.daemon.traffic import NoTrafficError

        if isinstance(error, StoppedError):
            logger.info("%s goes on at the next start", cycle_id)
        elif isinstance(error, CancelledError):
            self._end(cycle_id, "cancelled", "cancelled", "the cycle was cancelled")
        elif isinstance(error, DivergedError):
            self._end(cycle_id, "failed", "diverged", str(error))
        elif isinstance(error, NoTrafficError):
            self._end(cycle_id, "failed", "no_traffic", str(error))
        elif isinstance(error, ValidationError):
            self._end(cycle_id, "failed", "invalid", explain(error))
        else:
            logger.exception("%s: an error", cycle_id)
            record = self._cycles.get(cycle_id)
            assert record is not None
            attempts = record.attempts + 1
            self._cycles.write(record.model_copy(update={"attempts": attempts}))
            if attempts >= MAX_ATTEMPTS:
                self._end(cycle_id, "failed", "failed", _one_line(error))
            self._stop.wait(self._poll_seconds)

    def _end(self, cycle_id: str, status: Any, code: str, detail: str) -> None:
        record = self._cycles.get(cycle_id)
        assert record is not None
        self._cycles.write(
            record.model_copy(
                update={
                    "status": status,
                    "phase": None,
                    "finished": int(time.time()),
                    "code": code,
                    "detail": detail[:1000],
                }
            )
        )

    def _tidy(self) -> None:
        """Removes the states of ended cycles, once nothing in them is owed to the log."""
        runs = self._training_dir / "runs"
        ended = [
            folder
            for folder in (runs.iterdir() if runs.is_dir() else ())
            if (record := self._cycles.get(folder.name)) is None or record.ended
        ]
        if not ended:
            return
        try:
            self._links.ledger.settle(self._links.consumer)
        except TrajectoryLogError:
            return
        for folder in ended:
            shutil.rmtree(folder, ignore_errors=True)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
