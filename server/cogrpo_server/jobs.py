"""What ingress and engine pass each other: a job, and what became of it. Plain data."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cogrpo_client.types import Attribution, Info


@dataclass(frozen=True)
class Job:
    """A validated request. `id` names the generation, and its pictures are `id`-0, `id`-1, ..."""

    id: str
    request_id: str
    prompt: str
    negative_prompt: str
    n: int
    seed: int
    store: bool
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    schedule: str | dict[str, Any] | None = None
    size: tuple[int, int] | None = None
    """Height and width in pixels."""


@dataclass(frozen=True)
class Picture:
    """A finished PNG file."""

    png: bytes
    seed: int
    trajectory_id: str


@dataclass(frozen=True)
class Made:
    """The pictures of the job `id`; `created` is Unix time in seconds."""

    id: str
    created: int
    stored: bool
    pictures: list[Picture]
    attribution: Attribution


@dataclass(frozen=True)
class Refused:
    """Why a job has no pictures. `pointer` names the field at fault, when one is."""

    code: Literal["invalid", "overloaded", "timeout", "loading", "stopping", "failed"]
    message: str
    pointer: str = ""
    retry_after: int | None = None


@dataclass(frozen=True)
class EngineStatus:
    """What the engine says of itself; `info` is there once the model is loaded."""

    state: Literal["ready", "loading", "failed", "stopping"]
    reason: str = ""
    degraded: list[str] = field(default_factory=list)
    info: Info | None = None


class Backend(Protocol):
    """Where the routes send jobs: an engine in this process, or a replica behind Ray Serve."""

    async def generate(self, job: Job) -> Made | Refused:
        """The pictures of a job; cancelling the call stops the work at a step boundary."""
        ...

    async def status(self) -> EngineStatus:
        """The state of this moment."""
        ...
