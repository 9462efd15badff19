"""Judges what `detect.py` found in a picture against a spec.

Six tasks as GenEval has them, and long prompts as DPG-Bench. Every task asks for a clean picture:
all objects named, nothing else, no debris.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from cogrpo_core.shapes.detect import Bytes, Detection, detect
from cogrpo_core.shapes.scenes import IMAGE_SIZE, PLACES, Group, Object, Spec, holds

TASKS = (
    "single_object",
    "two_objects",
    "counting",
    "colors",
    "position",
    "color_attribution",
)


class TaskError(ValueError):
    """A task that the checker does not know."""


@dataclass(frozen=True)
class Verdict:
    """What of a spec holds in a picture; `score` is `long_score`, the share of its facts."""

    clean: bool
    count: bool
    shapes: bool
    colors: bool
    sizes: bool
    places: bool
    relation: bool
    background: bool
    style: bool
    score: float

    @property
    def everything(self) -> bool:
        """Whether the picture shows all that the spec says and nothing else."""
        return self.score == 1.0 and self.clean and self.count


def judge(task: str, spec: Spec, detection: Detection) -> bool:
    """Whether a picture passes `task` (one of `TASKS`) for a spec.

    single_object, two_objects and counting ask for the shapes, each as often as named; colors
    and color_attribution for the shapes with their colors; position for the shapes and the
    relation of the first to the second. Raises `TaskError` for an unknown task.
    """
    if task not in TASKS:
        raise TaskError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    if not detection.clean:
        return False
    if task in ("colors", "color_attribution"):
        return _same(spec, detection, "shape", "color")
    if task == "position":
        return _same(spec, detection, "shape") and _relation_holds(spec, detection)
    return _same(spec, detection, "shape")


def check(image: Bytes, spec: Spec) -> Verdict:
    """Compares a picture, uint8 [64, 64, 3], with a spec, aspect by aspect."""
    detection = detect(image)
    return Verdict(
        clean=detection.clean,
        count=len(detection.objects) == len(_wanted(spec)),
        shapes=_same(spec, detection, "shape"),
        colors=_same(spec, detection, "shape", "color"),
        sizes=_same(spec, detection, "shape", "size"),
        places=all(
            any(_is_at(group, item) for item in detection.objects if item.shape == group.shape)
            for group in spec.groups
        ),
        relation=_relation_holds(spec, detection),
        background=detection.background == spec.background,
        style=spec.style in detection.styles,
        score=long_score(spec, detection),
    )


def long_score(spec: Spec, detection: Detection) -> float:
    """The share of the facts of a spec that hold, in [0, 1], as DPG-Bench scores a long prompt.

    The facts: for each object that it is there (its shape), its color, its size and, where named,
    its place; the relation where named; the background; the style; and that nothing else is
    there. As in DPG-Bench, what is said of an object holds only if the object is there; objects
    are matched to the spec at their best.
    """
    wanted = _wanted(spec)
    facts = sum(3 + (group.place is not None) for group in wanted)
    gains = np.zeros((len(wanted), max(len(detection.objects), 1)))
    for row, group in enumerate(wanted):
        for column, item in enumerate(detection.objects):
            gains[row, column] = _facts_that_hold(group, item)
    held = float(gains[linear_sum_assignment(gains, maximize=True)].sum())
    if spec.relation is not None:
        facts += 1
        held += _relation_holds(spec, detection)
    held += detection.background == spec.background
    held += spec.style in detection.styles
    held += detection.clean and len(detection.objects) <= len(wanted)
    return held / (facts + 3)


def _wanted(spec: Spec) -> list[Group]:
    """One group an object."""
    return [group for group in spec.groups for _ in range(group.count)]


def _same(spec: Spec, detection: Detection, *attributes: str) -> bool:
    """Whether the picture's objects are those of the spec as far as `attributes` tell."""
    wanted = Counter(tuple(getattr(g, a) for a in attributes) for g in _wanted(spec))
    return wanted == Counter(tuple(getattr(o, a) for a in attributes) for o in detection.objects)


def _relation_holds(spec: Spec, detection: Detection) -> bool:
    """Whether an object of the first group stands so to one of the second."""
    if spec.relation is None:
        return True
    first, second = spec.groups[:2]
    by_color = first.shape == second.shape  # then only the colors tell them apart
    return any(
        holds(spec.relation, a.x - b.x, a.y - b.y)
        for a in detection.objects
        for b in detection.objects
        if _is(first, a, by_color) and _is(second, b, by_color)
    )


def _is(group: Group, item: Object, by_color: bool) -> bool:
    return item.shape == group.shape and (item.color == group.color or not by_color)


def _is_at(group: Group, item: Object) -> bool:
    """Whether an object's centre lies in the thirds of the picture that its place names."""
    if group.place is None:
        return True
    third = IMAGE_SIZE / 3
    return (int(item.x // third), int(item.y // third)) == PLACES[group.place]


def _facts_that_hold(group: Group, item: Object) -> int:
    if item.shape != group.shape:
        return 0
    place = group.place is not None and _is_at(group, item)
    return 1 + (item.color == group.color) + (item.size == group.size) + place
