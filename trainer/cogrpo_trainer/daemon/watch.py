"""Whether what a new champion serves is worth less than what the former one would have made.

Errors and speed are the engines' to judge (cogrpo_core/exchange/policy_guard.py); the rewards are
here. The newest logged pictures of the new champion are compared with the former one's of the same
prompts, seeds and steps (live_reward.py), so that other prompts than before are no fall. Reading
the log this way takes nothing from its consumers. Each promotion is judged once.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import redis
from pydantic import BaseModel, ConfigDict

from cogrpo_core.exchange.entry import Entry
from cogrpo_core.exchange.policy_announce import announce
from cogrpo_core.exchange.policy_journal import Move
from cogrpo_core.exchange.policy_manifest import Json, is_id
from cogrpo_core.exchange.policy_registry import PolicyRegistry, RegistryError
from cogrpo_core.exchange.training_records import TrainingRecords
from cogrpo_core.exchange.trajectory_log import MAX_READ, TrajectoryLogError, read_last
from cogrpo_trainer.daemon.config import WHO, DaemonConfig

LOOK_SECONDS = 10.0
"""Between two looks at the log."""
KEPT = 100
"""Versions whose last watch is remembered."""

_HISTORY = 1000

logger = logging.getLogger(__name__)


class WatchRecord(BaseModel):
    """How a promotion was judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    n: int
    """The promotion's number in the journal."""
    why: str | None
    """Why it was to be taken back; None where it was not."""
    facts: Json


@dataclass(frozen=True)
class Watched:
    """A promotion, and the newest entries of the log that its version made."""

    move: Move
    entries: Sequence[Entry]


class Watch:
    """The champion of one registry, after each promotion. Models are loaded elsewhere."""

    def __init__(
        self,
        config: DaemonConfig,
        registry: PolicyRegistry,
        connection: redis.Redis,
        training_dir: Path,
    ) -> None:
        self._config = config.watch
        self._registry = registry
        self._connection = connection
        self._records = TrainingRecords(training_dir / "watches", WatchRecord, is_id)
        self._next_look = 0.0

    def due(self) -> Watched | None:
        """A promotion that was not judged yet, once the log has enough pictures of its version."""
        if not self._config.pictures or time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            move = self._promotion()
            if move is None:
                return None
            found = read_last(self._connection, MAX_READ)
        except (RegistryError, TrajectoryLogError) as error:
            logger.warning("the champion is watched later: %s", error)
            return None
        entries = [entry for entry in found if entry.policy_version == move.to]
        return Watched(move, entries) if len(entries) >= self._config.pictures else None

    def settle(self, move: Move, why: str | None, facts: Json) -> None:
        """Writes down how a promotion was judged, and takes it back for a reason `why`.

        Raises `TrainingAwayError`.
        """
        assert move.to is not None
        if why is not None:
            try:
                self._take_back(move, move.to, why, facts)
            except RegistryError as error:  # somebody moved it, or the former one is gone
                logger.warning("version %s does worse (%s), but stays: %s", move.to, why, error)
                if error.code == "unavailable":  # the next look judges it again
                    return
        self._records.write(move.to, WatchRecord(version=move.to, n=move.n, why=why, facts=facts))
        for old in self._records.names()[KEPT:]:
            self._records.remove(old)

    def _promotion(self) -> Move | None:
        """The champion's last move, where it is a promotion, recent, and not judged yet."""
        moves = (
            entry
            for entry in self._registry.history(_HISTORY)
            if isinstance(entry, Move) and entry.alias == "champion"
        )
        move = next(moves, None)
        if move is None or (move.to or "") <= (move.was or ""):  # none, or a return
            return None
        assert move.to is not None
        known = self._records.get(move.to)
        if known is not None and known.n == move.n:
            return None
        return move if time.time() - move.at_ms / 1000 < self._config.seconds else None

    def _take_back(self, move: Move, version: str, why: str, facts: Json) -> None:
        back = self._registry.move(
            "champion",
            move.was,
            expected=version,
            who=WHO,
            why=why,
            evidence=facts,
            forced=True,
        )
        announce(self._connection, back)
        logger.error("version %s was taken back: %s", version, why)
        self._registry.judge(version, "rejected", who=WHO, why=why, evidence=facts)
