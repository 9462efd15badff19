"""Checks on what a caller asks of the pipeline; each gives the usable value or one clear error.

pipeline.py calls them before any work is done.
"""

import math
import operator
import secrets
from collections.abc import Sequence

from cogrpo_core.trajectory import MAX_SEED, MAX_TEXT, MAX_TOKENS

MAX_IMAGES = 16
"""The most images of one prompt."""
MAX_IMAGES_PER_CALL = 64


class PipelineInputError(ValueError):
    """An argument that cannot be used; `field` is its name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def whole_number(field: str, value: object, low: int, high: int) -> int:
    """`value` as an int between `low` and `high`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise PipelineInputError(field, f"{field} must be a whole number from {low} to {high}")
    return number


def real_number(field: str, value: object, low: float, high: float) -> float:
    """`value` as a finite float between `low` and `high`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not low <= value <= high
        or not math.isfinite(value)
    ):
        raise PipelineInputError(field, f"{field} must be a number from {low:g} to {high:g}")
    return float(value)


def text(field: str, value: object, *, may_be_empty: bool) -> str:
    """`value` as a prompt: text, not too long, encodable."""
    if not isinstance(value, str):
        raise PipelineInputError(field, f"{field} must be text, not {type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise PipelineInputError(field, f"{field} is empty: say what the picture should show")
    if len(value) > MAX_TEXT:
        raise PipelineInputError(
            field, f"{field} has {len(value)} characters; at most {MAX_TEXT} are allowed"
        )
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise PipelineInputError(field, f"{field} is not valid Unicode text")
    return value


def prompts(
    prompt: object, negative_prompt: object, images_per_prompt: int
) -> list[tuple[str, str]]:
    """(prompt, negative prompt) of every image, prompt by prompt."""
    given = (
        [prompt] if isinstance(prompt, str) or not isinstance(prompt, Sequence) else list(prompt)
    )
    if not given:
        raise PipelineInputError("prompt", "prompt is an empty list: give at least one")
    if len(given) * images_per_prompt > MAX_IMAGES_PER_CALL:
        raise PipelineInputError(
            "prompt",
            f"{len(given)} prompts with {images_per_prompt} images each are more than the "
            f"{MAX_IMAGES_PER_CALL} images of one call",
        )
    if negative_prompt is None:
        negative_prompt = ""
    if isinstance(negative_prompt, str) or not isinstance(negative_prompt, Sequence):
        negatives = [negative_prompt] * len(given)
    else:
        negatives = list(negative_prompt)
    if len(negatives) != len(given):
        raise PipelineInputError(
            "negative_prompt", f"{len(negatives)} negative prompts for {len(given)} prompts"
        )
    pairs = [
        (
            text("prompt", one, may_be_empty=False),
            text("negative_prompt", other, may_be_empty=True),
        )
        for one, other in zip(given, negatives, strict=True)
    ]
    return [pair for pair in pairs for _ in range(images_per_prompt)]


def seeds(seed: object, count: int) -> list[int]:
    """One seed an image: the given list, or seed + i modulo 2^32, from a random one if None."""
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        if len(seed) != count:
            raise PipelineInputError("seed", f"{len(seed)} seeds for {count} images")
        return [whole_number("seed", one, 0, MAX_SEED) for one in seed]
    first = (
        secrets.randbelow(MAX_SEED + 1) if seed is None else whole_number("seed", seed, 0, MAX_SEED)
    )
    return [(first + i) % (MAX_SEED + 1) for i in range(count)]


def size(
    height: object, width: object, allowed: Sequence[tuple[int, int]], token: int
) -> tuple[int, int]:
    """(height, width), one of the sizes that the checkpoint names; a token is `token` pixels."""
    for rows, columns in allowed:
        if (rows, columns) == (height, width):
            if (rows // token) * (columns // token) > MAX_TOKENS:
                raise PipelineInputError("height", f"that is more than {MAX_TOKENS} tokens")
            return rows, columns
    known = ", ".join(f"{rows}x{columns}" for rows, columns in allowed)
    field = "width" if any(height == rows for rows, _ in allowed) else "height"
    raise PipelineInputError(
        field, f"the model cannot make that size; height x width may be {known}"
    )
