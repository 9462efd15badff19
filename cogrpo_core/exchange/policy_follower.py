"""From the registry to an engine: the versions that the aliases name come to serve, by themselves.

A thread looks at the registry once a second, and at once when a move is announced. It loads and
tries a version beside the engine's work; then the engine changes over between two steps. What it
cannot use it refuses, and what serves goes on serving.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cogrpo_core.compiled import compile_steps
from cogrpo_core.engine import Engine
from cogrpo_core.exchange.policy_announce import Announcements
from cogrpo_core.exchange.policy_guard import Limits, fault
from cogrpo_core.exchange.policy_journal import Alias
from cogrpo_core.exchange.policy_manifest import Json
from cogrpo_core.exchange.policy_registry import Aliases, PolicyRegistry, RegistryError
from cogrpo_core.exchange.policy_weights import load_version
from cogrpo_core.jobs import NonFiniteError
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.versions import Health, Serving

BASE = "base"
"""The policy version of the base model, which is no version of the registry."""
POLL_SECONDS = 1.0
RESIDENT = 2
"""Versions in memory at most, beside the base model; another waits for the oldest to end."""

_FIRST_RETRY, _LAST_RETRY = 5.0, 300.0
_MAX_REFUSALS = 20
_LOOKS_AT_START = 10
_TRIAL_STEPS = 2
_STOP_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A version that could not be loaded or tried, and why."""

    version: str
    code: str
    """As `RegistryError`'s, or "unusable": it was loaded, and makes no picture."""
    message: str
    at: float
    """Unix time."""
    tries: int = 1

    def is_due(self, now: float) -> bool:
        """Whether it may be tried again; the waits double."""
        wait = _FIRST_RETRY * 2.0 ** min(self.tries - 1, 10)
        return not 0 <= now - self.at < min(wait, _LAST_RETRY)


class PolicyFollower:
    """Keeps an engine on the registry's champion, and on its challenger for a share of requests.

    `share` holds while the registry names none. `announcements` may be left out: it then takes up
    to a second to notice a move. Public attributes may be read from any thread.
    """

    def __init__(
        self,
        engine: Engine,
        registry: PolicyRegistry,
        *,
        share: float = 0.0,
        announcements: Announcements | None = None,
        limits: Limits | None = None,
        who: str = "engine",
    ) -> None:
        """`engine` serves the base model; `who` takes versions back, in the journal's words."""
        self.wanted = Aliases()
        self.unreadable: str | None = None
        """Why the registry cannot be read, while it cannot."""
        self.refused: dict[str, Refusal] = {}
        self.swaps: Counter[str] = Counter()
        """By outcome: "installed", "refused", "withdrawn"."""
        self.load_seconds: float | None = None
        """How long it took to load and try the last version."""
        self._engine = engine
        self._registry = registry
        self._base = engine.serving.champion
        self._share = share
        self._announcements = announcements
        self._limits = limits or Limits()
        self._who = who
        self._spare: CoGRPOPipeline | None = None  # loaded and tried, not yet installed
        self._former: tuple[str, float] | None = None  # the last champion, until when on the clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def share(self) -> float:
        """Of the requests, that the challenger is to get."""
        return self._share if self.wanted.share is None else self.wanted.share

    @property
    def converged(self) -> bool:
        """Whether the engine serves what the registry names."""
        serving = self._engine.serving
        challenger = serving.challenger.policy_version if serving.challenger else None
        return (
            self.unreadable is None
            and serving.champion.policy_version == _name(self.wanted.champion)
            and challenger == self._challenger()
        )

    def catch_up(self) -> None:
        """Looks until nothing is left to do, in this thread; before `start`."""
        for _ in range(_LOOKS_AT_START):
            if not self.look():
                return

    def start(self) -> None:
        """Begins to follow."""
        self._thread = threading.Thread(target=self._run, name="policies", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops to follow; bounded. The engine serves on."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def look(self) -> bool:
        """One look at the registry and one step towards it; True when the next can follow at once.

        A version is loaded at one look and installed at the next, if it is still wanted then.
        """
        try:
            self.wanted = self._registry.aliases()
            self.unreadable = None
        except RegistryError as error:
            if self.unreadable is None:
                logger.error("%s; what serves goes on", error)
            self.unreadable = error.code
            return False
        serving = self._engine.serving
        champion = self._find(_name(self.wanted.champion))
        name = self._challenger()
        challenger = None if name is None else self._find(name)
        missing = None
        if champion is None:
            champion, missing = serving.champion, _name(self.wanted.champion)
            if self._may_try(missing) and not self._has_room():
                challenger = None  # it holds the champion's place
        elif name is not None and challenger is None:
            missing = name
        if challenger is champion:
            challenger = None
        self._install(Serving(champion, challenger, self.share if challenger else 0.0))
        self._take_back()
        if missing is None or not self._may_try(missing) or not self._has_room():
            return False
        self._load(missing)
        return True

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                soon = self.look()
            except Exception:  # an end of this thread would be a silent end of all promotions
                logger.exception("the registry of policies could not be followed")
                soon = False
            if soon:
                continue
            if self._announcements is None:
                self._stopping.wait(POLL_SECONDS)
            else:
                self._announcements.wait(POLL_SECONDS)
        if self._announcements is not None:
            self._announcements.close()

    def _challenger(self) -> str | None:
        """Who is to get a share of the requests."""
        wanted = self.wanted.challenger
        return wanted if self.share > 0 and wanted != self.wanted.champion else None

    def _find(self, version: str) -> CoGRPOPipeline | None:
        """A version that is in memory."""
        known = {one.policy_version: one for one in (self._base, *self._engine.resident())}
        if self._spare is not None:
            known.setdefault(self._spare.policy_version, self._spare)
        return known.get(version)

    def _may_try(self, version: str) -> bool:
        refusal = self.refused.get(version)
        return refusal is None or refusal.is_due(time.time())

    def _has_room(self) -> bool:
        return len(self._engine.resident() - {self._base}) < RESIDENT

    def _load(self, version: str) -> None:
        self._spare = None
        began = time.monotonic()
        try:
            resident = {one.policy_version: one.checkpoint for one in self._engine.resident()}
            self._spare = load_tried(self._registry, version, self._base, resident)
        except RegistryError as error:
            self._refuse(version, error.code, str(error))
        except NonFiniteError as error:
            self._refuse(version, "unusable", str(error))
        except Exception as error:  # out of memory, say
            logger.exception("version %s could not be tried", version)
            self._refuse(version, "unusable", type(error).__name__)
        else:
            self.load_seconds = time.monotonic() - began
            self.refused.pop(version, None)

    def _refuse(self, version: str, code: str, message: str) -> None:
        logger.error("version %s is refused (%s): %s", version, code, message)
        before = self.refused.pop(version, None)
        tries = 1 if before is None else before.tries + 1
        self.refused[version] = Refusal(version, code, message, time.time(), tries)
        while len(self.refused) > _MAX_REFUSALS:
            del self.refused[next(iter(self.refused))]
        self.swaps["refused"] += 1

    def _install(self, new: Serving) -> None:
        now = self._engine.serving
        if new == now:
            return
        self._engine.install(new)
        if new.champion is not now.champion:
            until = time.monotonic() + self._limits.watch_seconds
            self._former = (now.champion.policy_version, until)
        if new.pipelines != now.pipelines:
            self.swaps["installed"] += 1
            logger.info("policies %s serve", [one.policy_version for one in new.pipelines])
        if self._spare in new.pipelines:
            self._spare = None

    def _take_back(self) -> None:
        """Withdraws a challenger, or rolls a new champion back, that does worse than the other."""
        if not self.converged:
            return
        serving, health = self._engine.serving, self._engine.health()
        champion = serving.champion.policy_version

        def worse(new: str, other: str) -> str | None:
            return fault(health.get(new, Health()), health.get(other, Health()), self._limits)

        if serving.challenger is not None:
            challenger = serving.challenger.policy_version
            if (why := worse(challenger, champion)) is not None:
                self._reject("challenger", challenger, None, why)
        if self._former is not None and time.monotonic() < self._former[1]:
            former = self.wanted.previous
            newer = (self.wanted.champion or "") > (former or "")  # and no roll-back
            known = self._former[0] == _name(former)
            if newer and known and (why := worse(champion, _name(former))) is not None:
                self._reject("champion", champion, former, why)

    def _reject(self, alias: Alias, version: str, to: str | None, why: str) -> None:
        """Moves an alias away from a version and judges that; another engine may do it first."""
        health = self._engine.health()
        evidence: Json = {one: {**vars(found)} for one, found in health.items()}
        try:
            self._registry.move(
                alias, to, expected=version, who=self._who, why=why, evidence=evidence, forced=True
            )
            self._registry.judge(version, "rejected", who=self._who, why=why)
        except RegistryError as error:
            logger.warning("version %s does worse (%s), but stays: %s", version, why, error)
            if error.code in ("unknown", "damaged"):  # there is nothing to go back to
                self._former = None
            return
        logger.error("version %s was taken back: %s", version, why)
        self.swaps["withdrawn"] += 1


def load_tried(
    registry: PolicyRegistry,
    version: str,
    base: CoGRPOPipeline,
    resident: Mapping[str, Checkpoint],
) -> CoGRPOPipeline:
    """A version as a pipeline that has made a first picture, of few steps.

    `resident` are versions in memory, by id, whose transformers may be shared. Raises
    `RegistryError` as `load_version` does, and `NonFiniteError` when the picture means nothing.
    """
    pipeline = CoGRPOPipeline(
        load_version(registry, version, base.checkpoint, resident=resident),
        policy_version=version,
        samples_per_pass=base.samples_per_pass,
        decode_tile=base.decode_tile,
    )
    if base.checkpoint.transformer.fixed_shapes:
        compile_steps(pipeline.checkpoint.transformer)
    made = pipeline("a trial", num_inference_steps=_TRIAL_STEPS, seed=0, output_type="tokens")
    tokens = made.trajectories[0].tokens
    codes = base.checkpoint.transformer.config.codebook_size
    if tokens.min() < 0 or tokens.max() >= codes:
        raise NonFiniteError(f"version {version} gave tokens that are no codes")
    return pipeline


def _name(version: str | None) -> str:
    return BASE if version is None else version
