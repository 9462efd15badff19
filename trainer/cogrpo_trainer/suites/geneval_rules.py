"""GenEval's rules (arXiv 2310.11513): whether the objects that were found are those asked for.

Pure functions of detections; who detects is detector.py. The rules are those of the benchmark's
evaluate_images.py with its published thresholds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
NEAR = 1e-3  # pixels: an offset below is none

Relation = Literal["left of", "right of", "above", "below"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wanted(_Part):
    """At least `count` objects of a class, of a color, or in relation to an earlier clause's."""

    name: str = Field(alias="class")
    count: Annotated[int, Field(ge=1)]
    color: str | None = None
    position: tuple[Relation, int] | None = None


class Unwanted(_Part):
    """Fewer than `count` objects of a class."""

    name: str = Field(alias="class")
    count: Annotated[int, Field(ge=1)]


class Spec(_Part):
    """A line of evaluation_metadata.jsonl."""

    tag: Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    prompt: Annotated[str, Field(min_length=1)]
    include: Annotated[tuple[Wanted, ...], Field(min_length=1)]
    exclude: tuple[Unwanted, ...] = ()

    @model_validator(mode="after")
    def _targets_come_first(self) -> Self:
        for i, wanted in enumerate(self.include):
            if wanted.position is not None and not 0 <= wanted.position[1] < i:
                raise ValueError(
                    f"include {i} stands in relation to a clause that is not before it"
                )
        return self


@dataclass(frozen=True)
class Detection:
    """An object that was found in a picture."""

    name: str
    confidence: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels; top is above."""
    mask: NDArray[np.bool_] | None = None
    """[H, W]; None where the detector gives boxes alone."""


@dataclass(frozen=True)
class Limits:
    """The published thresholds."""

    confidence: float = 0.3
    """Detections at or below it do not count."""
    counting_confidence: float = 0.9
    """The same in the task `counting`."""
    objects: int = 16
    """Of one class, at most."""
    overlap: float = 1.0
    """IoU from which on the less sure of two detections of a class is the same object; 1 is off."""
    distance: float = 0.1
    """Of the sum of two sizes: objects whose centres are nearer stand in no relation."""


@dataclass(frozen=True)
class Verdict:
    """Whether a picture passes, and what is wrong with it."""

    correct: bool
    reason: str


PUBLISHED_LIMITS = Limits()
ColorOf = Callable[[str, Sequence[Detection]], Sequence[str]]
"""The color of each detection of a class, one of `COLORS`."""


def judge(
    spec: Spec,
    detections: Sequence[Detection],
    color_of: ColorOf,
    limits: Limits = PUBLISHED_LIMITS,
) -> Verdict:
    """Whether the detections are what the spec asks for.

    Color and position are asked of the surest objects of a class, as many as are wanted.
    """
    objects = counted(detections, spec.tag == "counting", limits)
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in spec.include:
        found = objects.get(wanted.name, [])[: wanted.count]
        reason = _fault(wanted, found, groups, color_of, limits)
        groups.append(None if reason else found)
        reasons += [reason] if reason else []
    for unwanted in spec.exclude:
        number = len(objects.get(unwanted.name, []))
        if number >= unwanted.count:
            reasons.append(f"expected {unwanted.name}<{unwanted.count}, found {number}")
    return Verdict(not reasons, "\n".join(reasons))


def counted(
    detections: Sequence[Detection], counting: bool, limits: Limits = PUBLISHED_LIMITS
) -> dict[str, list[Detection]]:
    """The detections that count, by class, the surest first."""
    least = limits.counting_confidence if counting else limits.confidence
    objects: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=lambda one: -one.confidence):
        if one.confidence > least:
            objects.setdefault(one.name, []).append(one)
    return {name: _distinct(found[: limits.objects], limits) for name, found in objects.items()}


def relations(one: Detection, other: Detection, distance: float = 0.1) -> set[str]:
    """Where `one` stands, seen from `other`; none where they are too near, two on a diagonal."""
    boxes = np.array([one.box, other.box], np.float64).reshape(2, 2, 2)
    offset = boxes[0].mean(axis=0) - boxes[1].mean(axis=0)
    room = distance * np.abs(boxes[:, 1] - boxes[:, 0]).sum(axis=0)
    clear = np.sign(offset) * np.maximum(np.abs(offset) - room, 0)
    if np.all(np.abs(clear) < NEAR):
        return set()
    x, y = clear / np.linalg.norm(offset)
    sides = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {side for side, holds in sides.items() if holds}


def iou(one: Detection, other: Detection) -> float:
    """Intersection over union of two boxes, whose right and bottom pixels belong to them."""
    (left, top, right, bottom), (left_2, top_2, right_2, bottom_2) = one.box, other.box
    both = _area(max(left, left_2), max(top, top_2), min(right, right_2), min(bottom, bottom_2))
    either = _area(*one.box) + _area(*other.box) - both
    return both / either if either else 0.0


def _fault(
    wanted: Wanted,
    found: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    color_of: ColorOf,
    limits: Limits,
) -> str:
    """What a clause misses; nothing where it holds."""
    if len(found) < wanted.count:
        return f"expected {wanted.name}>={wanted.count}, found {len(found)}"
    if wanted.color is not None:
        colors = list(color_of(wanted.name, found))
        if colors.count(wanted.color) < wanted.count:
            seen = ", ".join(f"{colors.count(color)} {color}" for color in dict.fromkeys(colors))
            return f"expected {wanted.color} {wanted.name}>={wanted.count}, found {seen}"
    if wanted.position is not None:
        relation, index = wanted.position
        targets = groups[index]
        if targets is None:
            return f"no target for {wanted.name} to be {relation}"
        for one in found:
            for target in targets:
                sides = relations(one, target, limits.distance)
                if relation not in sides:
                    seen = " and ".join(sorted(sides)) or "near"
                    return f"expected {wanted.name} {relation} target, found {seen} target"
    return ""


def _distinct(found: Sequence[Detection], limits: Limits) -> list[Detection]:
    """Without the less sure ones that overlap a surer one."""
    if limits.overlap == 1:
        return list(found)
    kept: list[Detection] = []
    for one in found:
        if all(iou(one, surer) < limits.overlap for surer in kept):
            kept.append(one)
    return kept


def _area(left: float, top: float, right: float, bottom: float) -> float:
    return max(right - left + 1, 0) * max(bottom - top + 1, 0)
