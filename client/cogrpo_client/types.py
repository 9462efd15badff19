"""What goes over the wire: requests, responses and problems of the HTTP API.

The SDK parses responses with these models, the server validates requests with them.
"""

import base64
import io
import re
from pathlib import Path
from typing import Annotated, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_PROMPT_CHARACTERS = 2000
MAX_IMAGES = 8
MAX_STEPS = 256
MAX_SEED = 2**32 - 1
MAX_SIDE = 8192

_SCHEDULE_NAME = re.compile(r"meissonic|paper-table-1|learned|cosine-power(:\d{1,3}(\.\d{1,6})?)?")
_SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")
_FORBIDDEN_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

Ratio = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
SampleTemperature = Annotated[float, Field(ge=1e-3, le=100.0, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]


def _check_text(text: str) -> str:
    if _FORBIDDEN_CHARACTER.search(text):
        raise ValueError("control characters and unpaired surrogates are not text; remove them")
    return text


def _check_schedule_name(name: str) -> str:
    if not _SCHEDULE_NAME.fullmatch(name):
        raise ValueError(
            "unknown schedule; known are meissonic, paper-table-1, "
            "cosine-power (also cosine-power:GAMMA) and learned"
        )
    return name


class _Strict(BaseModel):
    """Requests: nothing unknown, nothing coerced."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Schedule(_Strict):
    """A given schedule: each action a number or one number a step; `base` presets the rest."""

    base: str | None = Field(default=None, max_length=32)
    remask_ratio: Ratio | list[Ratio] | None = None
    sample_temperature: SampleTemperature | list[SampleTemperature] | None = None
    remask_temperature: Scale | list[Scale] | None = None
    guidance_scale: Scale | list[Scale] | None = None

    @field_validator("base")
    @classmethod
    def _known_base(cls, base: str | None) -> str | None:
        return base if base is None else _check_schedule_name(base)

    def lengths(self) -> dict[str, int]:
        """How many values each per-step action has, by name; constants are left out."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: len(value) for name, value in values.items() if isinstance(value, list)}


class GenerateRequest(_Strict):
    """The body of `POST /generate`. What is left out takes the model's default (`GET /v1/info`)."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)
    negative_prompt: str = Field(default="", max_length=MAX_PROMPT_CHARACTERS)
    n: int = Field(default=1, ge=1, le=MAX_IMAGES, description="How many pictures.")
    num_inference_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(default=None, ge=0.0, le=100.0, allow_inf_nan=False)
    schedule: str | Schedule | None = Field(
        default=None, description="A preset's name or given values."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Picture i of a request uses seed + i, modulo 2^32.",
    )
    height: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    width: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    size: str | None = Field(
        default=None, max_length=16, description="WIDTHxHEIGHT, in place of both."
    )
    store: bool = Field(
        default=True, description="Whether the trajectories may be logged for training."
    )

    @field_validator("prompt")
    @classmethod
    def _prompt_is_text(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is blank; say what the picture shall show")
        return _check_text(prompt)

    @field_validator("negative_prompt")
    @classmethod
    def _negative_prompt_is_text(cls, prompt: str) -> str:
        return _check_text(prompt)

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, schedule: str | Schedule | None) -> str | Schedule | None:
        return _check_schedule_name(schedule) if isinstance(schedule, str) else schedule

    @field_validator("size")
    @classmethod
    def _readable_size(cls, size: str | None) -> str | None:
        if size is not None and not _SIZE.fullmatch(size):
            raise ValueError("write WIDTHxHEIGHT in pixels, as in 64x64")
        return size

    @model_validator(mode="after")
    def _one_way_to_give_the_size(self) -> "GenerateRequest":
        if self.size is not None:
            if self.height is not None or self.width is not None:
                raise ValueError("give either size or height and width")
        elif (self.height is None) != (self.width is None):
            raise ValueError("height and width go together")
        return self

    def height_and_width(self) -> tuple[int, int] | None:
        """The size asked for in pixels, or None for the model's default."""
        if self.size is not None:
            width, height = self.size.split("x")
            return int(height), int(width)
        if self.height is None or self.width is None:
            return None
        return self.height, self.width


class GeneratedImage(BaseModel):
    """One picture of a response."""

    b64_png: str
    seed: int
    trajectory_id: str

    @property
    def png(self) -> bytes:
        """The PNG file."""
        return base64.b64decode(self.b64_png)

    @property
    def image(self) -> Image.Image:
        """The picture as a PIL image, mode RGB."""
        with Image.open(io.BytesIO(self.png)) as image:
            return image.convert("RGB")

    def save(self, path: str | Path) -> None:
        """Write the PNG file as the server made it, its text chunks included."""
        Path(path).write_bytes(self.png)


class Attribution(BaseModel):
    """Which weights and which schedule made the pictures, and how long that took."""

    model: str
    policy_version: str
    schedule: str
    steps_planned: int
    steps_used: int
    queue_ms: float
    inference_ms: float


class Generation(BaseModel):
    """The response of `POST /generate`."""

    id: str
    request_id: str
    created: int
    stored: bool
    images: list[GeneratedImage]
    attribution: Attribution


class Limits(BaseModel):
    """Every bound that a request must keep."""

    body_bytes: int
    prompt_characters: int = MAX_PROMPT_CHARACTERS
    prompt_tokens: int
    images_per_request: int = MAX_IMAGES
    steps: int = MAX_STEPS
    images_times_steps: int
    queued_requests: int
    request_seconds: float


class ModelInfo(BaseModel):
    """The model that serves, and what it does when a request leaves a value out."""

    name: str
    fingerprint: str
    sizes: list[tuple[int, int]] = Field(description="[height, width] in pixels")
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    schedules: list[str]


class Info(BaseModel):
    """The response of `GET /v1/info`."""

    service: str = "cogrpo"
    version: str
    policy_version: str
    model: ModelInfo
    limits: Limits


class Readiness(BaseModel):
    """The response of `GET /readyz`: 200 when `status` is ready, else 503."""

    status: Literal["ready", "loading", "failed", "stopping"]
    degraded: list[str] = Field(
        default=[], description="What does not work while pictures are still made."
    )


class FieldError(BaseModel):
    """One fault of a request; `pointer` is a JSON pointer into the body (RFC 6901)."""

    pointer: str
    message: str


class Problem(BaseModel):
    """An error, `application/problem+json` (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    retryable: bool
    errors: list[FieldError] = []
