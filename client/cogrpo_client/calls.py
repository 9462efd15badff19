"""Every request of the API as data: what is sent, and how its answer is read. No I/O."""

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from cogrpo_client.answers import Answer, read_readiness, reader
from cogrpo_client.errors import ConfigurationError
from cogrpo_client.options import GenerateOptions
from cogrpo_client.types import (
    Canary,
    Cycle,
    Drain,
    Erased,
    Feedback,
    Generation,
    GenerationRecord,
    Health,
    Info,
    ModelList,
    Page,
    Policy,
    Promotion,
    Readiness,
    Replay,
    Replica,
)

T = TypeVar("T", covariant=True)
EVENT_STREAM = "text/event-stream"
KEY_HEADER = "Idempotency-Key"
VISIBLE_ASCII = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, the same for every try. A `long` one may take as long as a job."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    read: Callable[[Answer], T]
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    long: bool = False
    seconds: float | None = None
    """How long a try may take, when it is less than usual."""
    once: bool = False
    also_read: frozenset[int] = frozenset()
    """Statuses beside the successes whose answers `read` takes."""

    @property
    def retried(self) -> bool:
        """A POST is sent again only under an Idempotency-Key: the service runs that once."""
        return not self.once and (self.method != "POST" or KEY_HEADER in self.headers)

    def takes(self, status: int) -> bool:
        """Whether `read` reads an answer with this status."""
        return 200 <= status < 300 or status in self.also_read

    @property
    def admin(self) -> bool:
        """Whether it takes a key with the scope admin."""
        return self.path.startswith("/admin/")


def _get(path: str, read: Callable[[Answer], T], **params: str | int) -> Call[T]:
    return Call("GET", path, read, params=params)


def _post(
    path: str, read: Callable[[Answer], T], body: Mapping[str, Any] | None = None, **more: Any
) -> Call[T]:
    """A POST under a key of its own."""
    return Call("POST", path, read, body, headers={KEY_HEADER: uuid.uuid4().hex}, **more)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _segment(name: str) -> str:
    """An id as one part of a path. Raises `ConfigurationError` for what would be another path."""
    if name in ("", ".", ".."):
        raise ConfigurationError(f"{name!r} is no id")
    return quote(name, safe="")


# Generating


def _generate(
    prompt: str,
    options: GenerateOptions,
    key: str | None,
    read: Callable[[Answer], T],
    **headers: str,
) -> Call[T]:
    body: dict[str, Any] = {"prompt": prompt}
    for name, value in options.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_none=True)
        if value is not None:
            body[name] = value
    if key is not None and not (len(key) <= 255 and VISIBLE_ASCII.fullmatch(key)):
        raise ConfigurationError("an idempotency_key has 1 to 255 visible ASCII characters")
    headers[KEY_HEADER] = key or uuid.uuid4().hex
    return Call("POST", "/generate", read, body, headers=headers, long="Prefer" not in headers)


def generate(prompt: str, options: GenerateOptions, key: str | None) -> Call[Generation]:
    """Pictures of a prompt, waited for."""
    return _generate(prompt, options, key, reader(Generation), Accept="application/json")


def submit(prompt: str, options: GenerateOptions, key: str | None) -> Call[GenerationRecord]:
    """A job that makes pictures of a prompt."""
    return _generate(prompt, options, key, reader(GenerationRecord), Prefer="respond-async")


def stream(prompt: str, options: GenerateOptions, key: str | None) -> Call[None]:
    """The events of pictures being made."""
    return _generate(prompt, options, key, _no_answer, Accept=EVENT_STREAM)


def _no_answer(_: Answer) -> None:
    raise AssertionError("a stream is read event by event")


# Generations


def _generation(id: str, what: str = "") -> str:
    return f"/v1/generations/{_segment(id)}{what}"


def generations(limit: int, after: str | None) -> Call[Page[GenerationRecord]]:
    """A page of the generations."""
    read = reader(Page[GenerationRecord])
    return _get("/v1/generations", read, limit=limit, **_given(after=after))


def generation(id: str) -> Call[GenerationRecord]:
    """One generation."""
    return _get(_generation(id), reader(GenerationRecord))


def events(id: str) -> Call[None]:
    """The events of one generation; the reader adds where to begin."""
    headers = {"Accept": EVENT_STREAM}
    return Call("GET", _generation(id, "/events"), _no_answer, headers=headers, long=True)


def cancel(id: str) -> Call[GenerationRecord]:
    """Ends a generation."""
    return _post(_generation(id, "/cancel"), reader(GenerationRecord))


def delete(id: str) -> Call[Erased]:
    """Erases a generation."""
    return Call("DELETE", _generation(id), reader(Erased))


def delete_user(user: str) -> Call[Erased]:
    """Erases all generations of a user."""
    if not user:
        raise ConfigurationError("name the user whose generations shall be erased")
    return Call("DELETE", "/v1/generations", reader(Erased), params={"user": user})


def replay(id: str) -> Call[Replay]:
    """Makes a generation again."""
    return _post(_generation(id, "/replay"), reader(Replay), long=True)


def feedback(id: str, score: float, image: int | None) -> Call[Feedback]:
    """Stores a score."""
    body = _given(score=score, image=image)
    return _post(_generation(id, "/feedback"), reader(Feedback), body)


# The service


def info() -> Call[Info]:
    """Model and limits."""
    return _get("/v1/info", reader(Info))


def models() -> Call[ModelList]:
    """The models by name."""
    return _get("/v1/models", reader(ModelList))


def health() -> Call[Health]:
    """State and load."""
    return _get("/healthz", reader(Health))


def ready() -> Call[Readiness]:
    """Readiness of this moment."""
    return Call("GET", "/readyz", read_readiness, once=True, also_read=frozenset({503}))


# Administration

_CYCLES = "/admin/training/cycles"
_POLICIES = "/admin/policies"


def cycles(limit: int, after: str | None) -> Call[Page[Cycle]]:
    """A page of the training cycles."""
    return _get(_CYCLES, reader(Page[Cycle]), limit=limit, **_given(after=after))


def cycle(id: str) -> Call[Cycle]:
    """One cycle."""
    return _get(f"{_CYCLES}/{_segment(id)}", reader(Cycle))


def cycle_events(id: str) -> Call[None]:
    """One cycle at every change."""
    path, headers = f"{_CYCLES}/{_segment(id)}/events", {"Accept": EVENT_STREAM}
    return Call("GET", path, _no_answer, headers=headers, long=True)


def trigger(**settings: Any) -> Call[Cycle]:
    """Begins a cycle."""
    return _post(_CYCLES, reader(Cycle), _given(**settings))


def cancel_cycle(id: str) -> Call[Cycle]:
    """Ends a cycle."""
    return _post(f"{_CYCLES}/{_segment(id)}/cancel", reader(Cycle))


def policies(limit: int, after: str | None) -> Call[Page[Policy]]:
    """A page of the policy versions."""
    return _get(_POLICIES, reader(Page[Policy]), limit=limit, **_given(after=after))


def policy(version: str) -> Call[Policy]:
    """One version."""
    return _get(f"{_POLICIES}/{_segment(version)}", reader(Policy))


def promote(version: str, force: bool, reason: str, expected: str | None) -> Call[Promotion]:
    """Makes a version the champion."""
    body = {"force": force, "reason": reason} | _given(expected=expected)
    return _post(f"{_POLICIES}/{_segment(version)}/promote", reader(Promotion), body)


def rollback(reason: str, expected: str | None) -> Call[Promotion]:
    """The former champion again."""
    body = {"reason": reason} | _given(expected=expected)
    return _post(f"{_POLICIES}/rollback", reader(Promotion), body)


def canary() -> Call[Canary]:
    """Who is tried, with which share of the requests."""
    return _get(f"{_POLICIES}/canary", reader(Canary))


def set_canary(share: float, reason: str) -> Call[Canary]:
    """Says which share the challenger gets."""
    return _post(f"{_POLICIES}/canary", reader(Canary), {"share": share, "reason": reason})


def evaluate(version: str, **settings: Any) -> Call[Policy]:
    """Begins an evaluation."""
    path = f"{_POLICIES}/{_segment(version)}/evaluate"
    return _post(path, reader(Policy), _given(**settings))


def cancel_evaluation(version: str) -> Call[Policy]:
    """Ends an evaluation."""
    return _post(f"{_POLICIES}/{_segment(version)}/evaluate/cancel", reader(Policy))


def replicas(limit: int, after: str | None) -> Call[Page[Replica]]:
    """The engines."""
    return _get("/admin/replicas", reader(Page[Replica]), limit=limit, **_given(after=after))


def drain(draining: bool, deadline_seconds: float | None) -> Call[Drain]:
    """Refuses new generations, or takes that back."""
    body = _given(draining=draining, deadline_seconds=deadline_seconds)
    return _post("/admin/drain", reader(Drain), body)


def drain_state() -> Call[Drain]:
    """Whether new generations are refused."""
    return _get("/admin/drain", reader(Drain))
