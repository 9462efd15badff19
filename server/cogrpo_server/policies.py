"""The registry of policy versions for the routes: what there is, and moves in an operator's name.

Registry and Redis are asked in threads; every error becomes an `ApiError`.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from cogrpo_client.types import Canary, EvaluateRequest, Judged, Policy, Promotion
from cogrpo_core.exchange.policy_announce import announce
from cogrpo_core.exchange.policy_journal import Entry, Judgement, Move, Share
from cogrpo_core.exchange.policy_registry import PolicyRegistry, PolicyVersion, RegistryError
from cogrpo_core.exchange.training_cycles import BASE
from cogrpo_core.exchange.trajectory_log import connect
from cogrpo_server.evaluations import PolicyEvaluations
from cogrpo_server.problems import ApiError, invalid
from cogrpo_server.training import no_trainer

_HISTORY = 1_000_000
_RETRY_AFTER = 5

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class Policies:
    """The versions, their aliases, and who moved them. All methods are called from one event loop.

    `default_share` is the canary's share while nobody has said one. Without an `announce_url`
    engines notice a move when they next look, within a second. Without `evaluations` none can be
    asked for.
    """

    def __init__(
        self,
        registry: PolicyRegistry,
        *,
        default_share: float = 0.0,
        announce_url: str | None = None,
        evaluations: PolicyEvaluations | None = None,
    ) -> None:
        self._registry = registry
        self._evaluations = evaluations
        self._default_share = default_share
        self._connection = None if announce_url is None else connect(announce_url)

    async def page(self, limit: int, after: str | None) -> tuple[list[Policy], bool]:
        """Versions older than `after`, newest first, and whether there are more. No evidence."""
        return await _in_thread(self._page, limit, after)

    async def get(self, version: str) -> Policy:
        """One version, with its evidence and its last judgement."""
        return await _in_thread(self._get, version)

    async def promote(
        self, version: str, *, expected: str | None, force: bool, reason: str, caller: str
    ) -> Promotion:
        """Makes a version champion, where the champion is `expected` or, for None, any."""
        return await _in_thread(self._promote, version, expected, force, reason, caller)

    async def roll_back(
        self, *, expected: str | None, reason: str, caller: str, key: str | None
    ) -> Promotion:
        """Makes the former champion champion, once for each Idempotency-Key `key`."""
        return await _in_thread(self._roll_back, expected, reason, caller, key)

    async def canary(self) -> Canary:
        """Who is tried, with which share of the requests."""
        return await _in_thread(self._canary)

    async def set_share(self, share: float, *, reason: str, caller: str) -> Canary:
        """Says which share the challenger gets."""
        await _in_thread(
            lambda: self._announce(self._registry.set_share(share, who=caller, why=reason))
        )
        return await self.canary()

    async def evaluate(
        self, version: str, wanted: EvaluateRequest, *, key: str | None, body: str
    ) -> Policy:
        """Asks for a test of a version; `key` and `body` are digests."""
        return await _in_thread(self._evaluate, version, wanted, key, body)

    async def cancel_evaluation(self, version: str) -> Policy:
        """Ends the evaluation of a version; one that has ended stays as it is."""
        return await _in_thread(self._cancel_evaluation, version)

    def _page(self, limit: int, after: str | None) -> tuple[list[Policy], bool]:
        ids = [one for one in reversed(self._registry.versions()) if after is None or one < after]
        found = []
        for version in ids[:limit]:
            try:
                found.append(self._wire(self._registry.get(version)))
            except RegistryError as error:  # a damaged one must not hide the others
                logger.warning("%s", error)
        return found, len(ids) > limit

    def _get(self, version: str) -> Policy:
        found = self._registry.get(version)
        judged = _last(self._registry.history(_HISTORY), Judgement, lambda e: e.version == version)
        manifest = found.manifest
        return self._wire(found).model_copy(
            update={
                "evidence": manifest.evidence,
                "training": manifest.training,
                "judgement": None
                if judged is None
                else Judged(
                    status=judged.status,
                    created=judged.at_ms // 1000,
                    caller=judged.who,
                    reason=judged.why,
                    evidence=judged.evidence,
                ),
            }
        )

    def _evaluate(
        self, version: str, wanted: EvaluateRequest, key: str | None, body: str
    ) -> Policy:
        self._registry.manifest(version)
        against = wanted.against or self._registry.aliases().champion or BASE
        if against == version:
            raise invalid("/against", "is the version itself; name another one, or base")
        if against != BASE:
            try:
                self._registry.manifest(against)
            except RegistryError as error:
                if error.code != "unknown":
                    raise
                raise invalid("/against", "there is no such version") from None
        if self._evaluations is None:
            raise no_trainer()
        self._evaluations.request(version, against, wanted, key=key, body=body)
        return self._get(version)

    def _cancel_evaluation(self, version: str) -> Policy:
        self._registry.manifest(version)
        if self._evaluations is None:
            raise no_trainer()
        self._evaluations.cancel(version)
        return self._get(version)

    def _wire(self, version: PolicyVersion) -> Policy:
        manifest, evaluation = version.manifest, None
        if self._evaluations is not None:
            evaluation = self._evaluations.latest(version.id, manifest.evidence)
        return Policy(
            version=version.id,
            status=version.status,
            parent=manifest.parent,
            on=manifest.on,
            created=manifest.created_at_ms // 1000,
            kind=manifest.kind,
            sha256=manifest.fingerprint,
            bytes=sum(file.size for file in manifest.files.values()),
            aliases=list(version.aliases),
            evaluation=evaluation,
        )

    def _promote(
        self, version: str, expected: str | None, force: bool, reason: str, caller: str
    ) -> Promotion:
        to = _id(version)
        now = self._registry.aliases().champion
        history = self._registry.history(_HISTORY)
        last = _last(history, Move, lambda entry: entry.alias == "champion")
        if to == now and last is not None:  # also when the call is sent again
            return _promotion(last)
        if to == now or (expected is not None and _id(expected) != now):
            raise _conflict(now)
        if not force and not (to is not None and self._has_passed(to, history, last)):
            raise ApiError(
                409,
                "no_evidence",
                "The version has not passed a test against the present champion; it can be forced.",
            )
        return self._move(
            lambda: self._registry.move(
                "champion", to, expected=now, who=caller, why=reason, forced=force
            )
        )

    def _has_passed(self, version: str, history: list[Entry], last: Move | None) -> bool:
        """Whether it was found better since the champion became champion."""
        found = self._registry.get(version)
        judged = _last(history, Judgement, lambda entry: entry.version == version)
        at_ms = found.manifest.created_at_ms if judged is None else judged.at_ms
        return found.status == "passed" and (last is None or at_ms >= last.at_ms)

    def _roll_back(
        self, expected: str | None, reason: str, caller: str, key: str | None
    ) -> Promotion:
        evidence: dict[str, Any] = {}
        if key is not None:  # a rollback that is sent twice must not go forward again
            request = hashlib.sha256(f"{caller}\n{key}".encode()).hexdigest()
            evidence = {"request": request}
            history = self._registry.history(_HISTORY)
            done = _last(history, Move, lambda entry: entry.evidence.get("request") == request)
            if done is not None:
                return _promotion(done)
        aliases = self._registry.aliases()
        if expected is not None and _id(expected) != aliases.champion:
            raise _conflict(aliases.champion)
        if aliases.champion == aliases.previous:
            raise ApiError(409, "nothing_to_roll_back", "There is no former champion.")
        return self._move(
            lambda: self._registry.roll_back(
                expected=aliases.champion, who=caller, why=reason, evidence=evidence
            )
        )

    def _move(self, move: Callable[[], Move]) -> Promotion:
        try:
            moved = move()
        except RegistryError as error:
            if error.code == "conflict":
                raise _conflict(self._registry.aliases().champion) from None
            raise
        self._announce(moved)
        return _promotion(moved)

    def _canary(self) -> Canary:
        aliases = self._registry.aliases()
        share = self._default_share if aliases.share is None else aliases.share
        return Canary(challenger=aliases.challenger, share=share)

    def _announce(self, entry: Move | Share) -> None:
        if self._connection is not None:
            announce(self._connection, entry)


async def _in_thread(work: Callable[..., Value], *arguments: Any) -> Value:
    """Raises `ApiError` with the registry's code, in words of our own."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except RegistryError as error:
        logger.warning("%s", error)
        status, detail = _ERRORS[error.code]
        retry = _RETRY_AFTER if status == 503 else None
        raise ApiError(status, error.code, detail, retry_after=retry) from None


_ERRORS = {
    "unknown": (404, "There is no such version."),
    "damaged": (409, "The version or the registry is damaged; ingress.log says where."),
    "conflict": (409, "The version was rejected, or another move came first."),
    "invalid": (422, "The registry does not take this."),
    "unavailable": (503, "The registry cannot be read or written now."),
}


def _conflict(champion: str | None) -> ApiError:
    return ApiError(409, "conflict", f"The champion is {champion or BASE}, or was just moved.")


def _id(version: str) -> str | None:
    return None if version == BASE else version


def _last(history: list[Entry], kind: type[Value], fits: Callable[[Value], bool]) -> Value | None:
    """The newest entry of a kind that fits; `history` is newest first."""
    return next((one for one in history if isinstance(one, kind) and fits(one)), None)


def _promotion(move: Move) -> Promotion:
    return Promotion(
        version=move.to or BASE,
        previous=move.was or BASE,
        created=move.at_ms // 1000,
        forced=move.forced,
        reason=move.why,
        caller=move.who,
    )
