"""Hard negatives: specs that differ from another in one fact, so that its caption is false."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cogrpo_core.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    PLACES,
    RADIUS,
    RELATIONS,
    SHAPES,
    STYLES,
    Group,
    Spec,
)

Change = Callable[[Spec, np.random.Generator], Spec | None]
"""A spec with one fact changed; None where the spec has no such fact."""


def wrong_color(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """One group in another color."""
    at = _any_group(spec, rng)
    return _with_group(spec, at, replace(spec.groups[at], color=_other_color(rng, spec.groups[at])))


def wrong_shape(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """One group of another shape."""
    at = _any_group(spec, rng)
    shape = str(rng.choice([s for s in SHAPES if s != spec.groups[at].shape]))
    return _with_group(spec, at, replace(spec.groups[at], shape=shape))


def wrong_size(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """One group of another size; large only where there is room."""
    at = _any_group(spec, rng)
    roomy = sum(group.count for group in spec.groups) < 3
    roomy &= all(group.size != "large" for group in spec.groups)
    sizes = [s for s in RADIUS if s != spec.groups[at].size and (roomy or s != "large")]
    return _with_group(spec, at, replace(spec.groups[at], size=str(rng.choice(sizes))))


def wrong_count(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """One object more or less of a group, or one group less."""
    if spec.relation is not None:
        return None
    total = sum(group.count for group in spec.groups)
    at = _any_group(spec, rng)
    group = spec.groups[at]
    choices = []
    if group.count > 1:
        choices.append(group.count - 1)
    elif len(spec.groups) > 1:
        choices.append(0)
    if total < MAX_OBJECTS and group.place is None and group.size != "large":
        choices.append(group.count + 1)
    if not choices:
        return None
    count = int(rng.choice(choices))
    if count == 0:
        return replace(spec, groups=(*spec.groups[:at], *spec.groups[at + 1 :]))
    return _with_group(spec, at, replace(group, count=count))


def wrong_place(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """One group at another place, where the spec names places."""
    at = _any_group(spec, rng)
    if spec.groups[at].place is None:
        return None
    taken = {group.place for group in spec.groups}
    place = str(rng.choice([p for p in PLACES if p not in taken]))
    return _with_group(spec, at, replace(spec.groups[at], place=place))


def wrong_relation(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """Another relation, where the spec names one."""
    if spec.relation is None:
        return None
    return replace(spec, relation=str(rng.choice([r for r in RELATIONS if r != spec.relation])))


def wrong_attribution(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """The colors of two groups exchanged."""
    if len(spec.groups) < 2:
        return None
    i, j = (int(at) for at in rng.choice(len(spec.groups), 2, replace=False))
    first, second = spec.groups[i], spec.groups[j]
    if first.shape == second.shape or first.color == second.color:
        return None
    changed = _with_group(spec, i, replace(first, color=second.color))
    return changed and _with_group(changed, j, replace(second, color=first.color))


def wrong_background(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """Another background."""
    names = [name for name in BACKGROUNDS if name != spec.background]
    return replace(spec, background=str(rng.choice(names)))


def wrong_style(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """Another style."""
    return replace(spec, style=other_style(spec, rng))


def other_style(spec: Spec, rng: np.random.Generator) -> str:
    """A style that pictures of the spec are not in: black objects and small rings look the same
    flat and as cartoons."""
    alike = all(
        group.color == "black" or (group.shape, group.size) == ("ring", "small")
        for group in spec.groups
    )
    same = {"flat", "cartoon"} if alike and spec.style in ("flat", "cartoon") else {spec.style}
    return str(rng.choice([style for style in STYLES if style not in same]))


KINDS: dict[str, Change] = {
    "color": wrong_color,
    "shape": wrong_shape,
    "size": wrong_size,
    "count": wrong_count,
    "place": wrong_place,
    "relation": wrong_relation,
    "attribution": wrong_attribution,
    "background": wrong_background,
    "style": wrong_style,
}
# How often each kind is tried: what a generator gets wrong most is tried most.
WEIGHTS = np.array([3, 3, 2, 3, 3, 4, 3, 1, 1], np.float64)


def hard_negative(spec: Spec, rng: np.random.Generator) -> Spec:
    """A spec that differs from `spec` in one random fact."""
    names = rng.choice(list(KINDS), len(KINDS), replace=False, p=WEIGHTS / WEIGHTS.sum())
    for name in names:
        changed = KINDS[str(name)](spec, rng)
        if changed is not None:
            return changed
    raise AssertionError("a background can always be another")


def _any_group(spec: Spec, rng: np.random.Generator) -> int:
    return int(rng.integers(len(spec.groups)))


def _other_color(rng: np.random.Generator, group: Group) -> str:
    return str(rng.choice([name for name in COLORS if name != group.color]))


def _with_group(spec: Spec, at: int, group: Group) -> Spec | None:
    """The spec with another group at a place; None if two groups would be the same things."""
    others = (*spec.groups[:at], *spec.groups[at + 1 :])
    if any((group.shape, group.color) == (other.shape, other.color) for other in others):
        return None
    return replace(spec, groups=(*spec.groups[:at], group, *spec.groups[at + 1 :]))
