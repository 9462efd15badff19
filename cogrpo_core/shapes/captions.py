"""Puts a spec into words: short phrases, or long descriptions that name every object's place."""

import numpy as np

from cogrpo_core.shapes.scenes import Group, Spec

NUMBERS = ("zero", "a", "two", "three", "four")
PLURALS = {"cross": "crosses"}


def caption(spec: Spec, rng: np.random.Generator | None = None) -> str:
    """A caption of `spec`: the plain wording, or with `rng` one of several wordings at random."""
    pick = _plain if rng is None else rng
    if any(group.place for group in spec.groups) and len(spec.groups) <= 3 and pick.random() < 0.4:
        return _sentences(spec, pick)
    phrases = [_phrase(group, pick) for group in spec.groups]
    if spec.relation is not None:
        text = f"{phrases[0]} {_relation(spec.relation, pick)} {phrases[1]}"
    elif len(phrases) == 1:
        text = phrases[0]
    else:
        text = f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return _with_look(text, spec, pick)


class _Plain:
    """Stands in for a random generator where the plain wording is wanted."""

    def random(self) -> float:
        return 0.99


_plain = _Plain()
_Pick = np.random.Generator | _Plain


def _phrase(group: Group, pick: _Pick) -> str:
    words = [NUMBERS[group.count]]
    if group.size != "medium":
        words.append(group.size)
    if group.color != "black" or pick.random() < 0.5:
        words.append(group.color)
    words.append(group.shape if group.count == 1 else PLURALS.get(group.shape, f"{group.shape}s"))
    if group.count == 1 and words[1][0] in "aeiou":
        words[0] = "an"
    if group.place is not None:
        words.append(_place(group.place))
    return " ".join(words)


def _place(place: str) -> str:
    return f"in the {place}" if place == "center" else f"at the {place}"


def _relation(relation: str, pick: _Pick) -> str:
    if relation in ("left of", "right of") and pick.random() < 0.5:
        return f"to the {relation}"
    return relation


def _with_look(text: str, spec: Spec, pick: _Pick) -> str:
    if spec.background != "white" or pick.random() < 0.1:
        text += f" on a {spec.background} background"
    if spec.style == "cartoon":
        return f"a cartoon of {text}" if pick.random() < 0.5 else f"{text}, cartoon style"
    if spec.style != "flat" or pick.random() < 0.03:
        style = spec.style
        return f"a {style} picture of {text}" if pick.random() < 0.5 else f"{text}, {style} style"
    return f"a picture of {text}" if pick.random() < 0.1 else text


def _sentences(spec: Spec, pick: _Pick) -> str:
    parts = [f"there is {_phrase(group, pick)}." for group in spec.groups]
    if spec.background != "white" or pick.random() < 0.2:
        parts.append(f"the background is {spec.background}.")
    if spec.style != "flat":
        parts.append(f"the style is {spec.style}.")
    return " ".join(parts)
