"""The record of one generated image, and its codec.

A kept token is never masked again, so a trajectory is two arrays, the tokens and the step each was
filled at, beside the actions and log-probabilities that training reads. pipeline.py makes and
replays them.

Layout, little-endian: magic, format version (u16), header length (u32), JSON header, then the
arrays tokens u16 [N], fill_step u8 [N], token_logprob f32 [N], actions f32 [T,4], raw_actions f32
[T,4] where the header says so, action_logprob f32 [T], and the CRC-32 of all that precedes it.

Shape letters: N image tokens, T steps.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cogrpo_core.schedule import ACTION_BOUNDS, ACTION_COLUMNS, MAX_STEPS

FORMAT_VERSION = 1
MAX_TOKENS = 16384
MAX_CODES = 2**16
MAX_SEED = 2**32 - 1
MAX_TEXT = 2000
"""The longest prompt, in characters."""

_MAGIC = b"CGRT"
_PREFIX = struct.Struct("<4sHI")
_CHECKSUM = struct.Struct("<I")
_MAX_HEADER = 32 * 1024
_NUM_ACTIONS = len(ACTION_COLUMNS)
_TEXTS = ("prompt", "negative_prompt", "schedule", "model", "fingerprint", "policy_version")

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float32]


class TrajectoryError(ValueError):
    """Bytes or values that are no valid trajectory."""


_Text = Annotated[str, Field(max_length=MAX_TEXT)]
_Name = Annotated[str, Field(max_length=200)]
_Pixels = Annotated[int, Field(ge=1, le=2**16)]
_Cells = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class _Meta(BaseModel):
    """All of a trajectory but its arrays; also what the JSON header may hold."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: _Text
    negative_prompt: _Text
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    height: _Pixels
    width: _Pixels
    grid_height: _Cells
    grid_width: _Cells
    schedule: _Name
    model: _Name
    fingerprint: _Name
    policy_version: _Name
    sampler_version: Annotated[int, Field(ge=1, le=2**16 - 1)]
    created_at_ms: Annotated[int, Field(ge=0, le=2**53)]


class _Header(_Meta):
    num_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    learned: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory:
    """How one image came about: enough to replay it, to train on it and to say what made it.

    Arrays are read-only and validated, `TrajectoryError` otherwise. Two trajectories are the same
    when their `to_bytes()` are.
    """

    prompt: str
    negative_prompt: str
    seed: int
    height: int
    """Pixels, as `width`."""
    width: int
    grid_height: int
    """Rows of tokens; N = grid_height * grid_width, row by row."""
    grid_width: int
    schedule: str
    """The name of the schedule: a preset's, "given" or "learned"."""
    model: str
    fingerprint: str
    """Of the model's weights."""
    policy_version: str
    sampler_version: int
    created_at_ms: int
    """Unix time in milliseconds."""
    tokens: IntArray
    """[N] the final codes."""
    fill_step: IntArray
    """[N] the step 0 ... T-1 at which each token was kept."""
    token_logprob: FloatArray
    """[N] log softmax(l / tau_s) of each token when it was drawn."""
    actions: FloatArray
    """[T,4] the actions taken, columns as in schedule.py."""
    raw_actions: FloatArray | None = None
    """[T,4] the unconstrained actions of a learned schedule, None for any other."""
    action_logprob: FloatArray
    """[T] the scheduling policy's log-density of each action, 0 for a schedule without a policy."""

    def __post_init__(self) -> None:
        _validated(_Meta, {name: getattr(self, name) for name in _Meta.model_fields})
        for text in (getattr(self, name) for name in _TEXTS):
            if not _is_unicode(text):
                raise TrajectoryError("a text of the trajectory is not valid Unicode")
        num_tokens, num_steps = self.grid_height * self.grid_width, len(self.actions)
        if num_tokens > MAX_TOKENS:
            raise TrajectoryError(f"a trajectory has at most {MAX_TOKENS} tokens, not {num_tokens}")
        if not 1 <= num_steps <= MAX_STEPS:
            raise TrajectoryError(f"a trajectory has 1 to {MAX_STEPS} steps, not {num_steps}")
        self._settle("tokens", np.int64, (num_tokens,), 0, MAX_CODES - 1)
        self._settle("fill_step", np.int64, (num_tokens,), 0, num_steps - 1)
        self._settle("token_logprob", np.float32, (num_tokens,), -np.inf, 1e-3)
        self._settle("actions", np.float32, (num_steps, _NUM_ACTIONS), *_action_bounds())
        self._settle("action_logprob", np.float32, (num_steps,), -np.inf, np.inf)
        if self.raw_actions is not None:
            self._settle("raw_actions", np.float32, (num_steps, _NUM_ACTIONS), -np.inf, np.inf)

    def _settle(
        self,
        name: str,
        dtype: type[np.int64] | type[np.float32],
        shape: tuple[int, ...],
        low: float | FloatArray,
        high: float | FloatArray,
    ) -> None:
        """Makes the array `name` a checked, read-only copy of its type."""
        given: NDArray[Any] = np.asarray(getattr(self, name))
        if given.shape != shape:
            raise TrajectoryError(
                f"{name} of the trajectory has the shape {given.shape}, not {shape}"
            )
        if given.dtype.kind not in ("iu" if dtype is np.int64 else "f"):
            raise TrajectoryError(f"{name} of the trajectory has the type {given.dtype}")
        array: NDArray[Any] = np.array(given, dtype=dtype)
        if not np.isfinite(array).all() or (array < low).any() or (array > high).any():
            raise TrajectoryError(f"{name} of the trajectory holds a value out of range")
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.actions)

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.tokens)

    def tokens_at(self, step: int, mask_token_id: int) -> IntArray:
        """V^(t) [N], the tokens before step t (all masks at 0, none at T)."""
        if not 0 <= step <= self.num_steps:
            raise TrajectoryError(f"step {step} lies outside 0 ... {self.num_steps}")
        return np.where(self.fill_step < step, self.tokens, np.int64(mask_token_id))

    def to_bytes(self) -> bytes:
        """The record in the layout above: about 3 KB for 256 tokens, 30 KB for 4096."""
        meta = {name: getattr(self, name) for name in _Meta.model_fields}
        header = _Header(**meta, num_steps=self.num_steps, learned=self.raw_actions is not None)
        header_bytes = header.model_dump_json().encode()
        assert len(header_bytes) <= _MAX_HEADER
        parts = [_PREFIX.pack(_MAGIC, FORMAT_VERSION, len(header_bytes)), header_bytes]
        for name, dtype, _ in _layout(header):
            parts.append(getattr(self, name).astype(dtype).tobytes())
        body = b"".join(parts)
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Trajectory":
        """The record that `to_bytes` wrote; `TrajectoryError` on anything else, whatever it holds.

        Nothing is allocated from a declared length before the whole length agrees.
        """
        header, body_start = _read_header(data)
        sizes = [
            np.dtype(dtype).itemsize * int(np.prod(shape)) for _, dtype, shape in _layout(header)
        ]
        if len(data) != body_start + sum(sizes) + _CHECKSUM.size:
            raise TrajectoryError("the trajectory's length does not agree with its header")
        if zlib.crc32(data[: -_CHECKSUM.size]) != _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]:
            raise TrajectoryError("the trajectory's checksum does not agree: the bytes are damaged")
        arrays: dict[str, Any] = {}
        offset = body_start
        for (name, dtype, shape), size in zip(_layout(header), sizes, strict=True):
            array = np.frombuffer(data[offset : offset + size], dtype=dtype).reshape(shape)
            arrays[name] = array.astype(np.int64 if dtype[1] == "u" else np.float32)
            offset += size
        return cls(**header.model_dump(exclude={"num_steps", "learned"}), **arrays)


def _is_unicode(text: str) -> bool:
    """False for a text with lone surrogates, which no encoder can write."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _action_bounds() -> tuple[FloatArray, FloatArray]:
    bounds = np.array(ACTION_BOUNDS, dtype=np.float32)
    return bounds[:, 0], bounds[:, 1]


def _layout(header: _Header) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, little-endian type and shape of each array, in the order in which they are stored."""
    num_tokens, num_steps = header.grid_height * header.grid_width, header.num_steps
    layout: list[tuple[str, str, tuple[int, ...]]] = [
        ("tokens", "<u2", (num_tokens,)),
        ("fill_step", "<u1", (num_tokens,)),
        ("token_logprob", "<f4", (num_tokens,)),
        ("actions", "<f4", (num_steps, _NUM_ACTIONS)),
        ("action_logprob", "<f4", (num_steps,)),
    ]
    if header.learned:
        layout.insert(4, ("raw_actions", "<f4", (num_steps, _NUM_ACTIONS)))
    return layout


def _read_header(data: bytes) -> tuple[_Header, int]:
    """The checked header and where the arrays begin."""
    if not isinstance(data, bytes):
        raise TrajectoryError(f"a trajectory is read from bytes, not from {type(data).__name__}")
    if len(data) < _PREFIX.size:
        raise TrajectoryError("the bytes are too short for a trajectory")
    magic, version, header_size = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise TrajectoryError("the bytes are not a trajectory")
    if version != FORMAT_VERSION:
        raise TrajectoryError(
            f"the trajectory has format {version}; this version reads format {FORMAT_VERSION}"
        )
    body_start = _PREFIX.size + header_size
    if header_size > _MAX_HEADER or body_start > len(data):
        raise TrajectoryError("the trajectory's header is longer than it may be")
    try:
        header = _Header.model_validate_json(data[_PREFIX.size : body_start])
    except ValidationError as error:
        raise TrajectoryError(_first_error(error)) from None
    if header.grid_height * header.grid_width > MAX_TOKENS:
        raise TrajectoryError(f"a trajectory has at most {MAX_TOKENS} tokens")
    return header, body_start


def _validated(model: type[_Meta], values: dict[str, object]) -> _Meta:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise TrajectoryError(_first_error(error)) from None


def _first_error(error: ValidationError) -> str:
    """One line that names the field, without the value."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "header"
    return f"the trajectory's {field} is not valid: {first['msg']}"
