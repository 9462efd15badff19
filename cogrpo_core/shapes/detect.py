"""Finds the objects of a picture by analysis and synthesis.

Silhouettes are matched first, then rendered sprites are compared with the pixels. What the found
objects over the background do not explain is debris. `checker.py` judges what is found here.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cogrpo_core.shapes.render import coverage_mask, draw, sprite
from cogrpo_core.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    RADIUS,
    SHAPES,
    STYLES,
    Object,
)

BACKGROUND_RADIUS = 30.0  # a pixel this near to the background (RGB distance) belongs to it
BACKGROUND_SHARE = 0.4  # of the picture that the background fills at least
SMALLEST = 12  # pixels of a component that can be an object
FRAME = 32  # side of the square in which silhouettes are compared
SLACK = (-1, 0, 1)  # pixels by which a silhouette may be off its component's bounding box
SEEN_COVERAGE = 0.15  # of a pixel, from which on it stands out from the background
MIN_IOU = 0.6
IOU_MARGIN = 0.15  # silhouettes this much worse than the best are still compared by their pixels
MAX_CANDIDATES = 8
MAX_ERROR = 26.0  # mean absolute difference of an object's pixels from its sprite, of 255
SAME_ERROR = 0.5  # sprites this close in error are the same: a black cartoon is a flat black
RESIDUAL = 55.0  # RGB distance from the expected picture that a plain area may have
EDGE_RESIDUAL = 0.45  # the same beside an edge, as a share of the edge's contrast, in addition
SPECK = 3  # pixels of unexplained residual, connected, that are forgiven

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Detection:
    """What a picture shows.

    `objects` are the recognised ones from left to right, at any pixel position; `styles` those
    that fit all of them (black objects look the same in two styles; empty when the objects differ
    or there is none); `debris` counts the pixels that are neither background nor a recognised
    object. `background` is None when the picture has no known one: then nothing is recognised.
    """

    background: str | None
    objects: tuple[Object, ...]
    styles: tuple[str, ...]
    debris: int

    @property
    def style(self) -> str | None:
        """The one style of all objects, or None."""
        return self.styles[0] if self.styles else None

    @property
    def clean(self) -> bool:
        """Whether the background and the recognised objects explain the whole picture."""
        return self.background is not None and self.debris == 0


@dataclass(frozen=True)
class _Match:
    item: Object
    styles: tuple[str, ...]


def detect(image: Bytes) -> Detection:
    """Finds background, objects, style and debris of a picture, uint8 [64, 64, 3].

    Raises ValueError for another size or type: scale larger pictures down first.
    """
    pixels = _as_pixels(image)
    background = _background(pixels)
    if background is None:
        return Detection(None, (), (), IMAGE_SIZE * IMAGE_SIZE)
    tone = np.array(BACKGROUNDS[background], np.float32)
    foreground = _distance(pixels, tone) > BACKGROUND_RADIUS
    labels, number = ndimage.label(foreground, np.ones((3, 3)))
    matches = []
    for label in range(1, number + 1):
        match = _recognise(pixels, labels, label, background)
        if match is not None:
            matches.append(match)
    matches.sort(key=lambda match: (match.item.x, match.item.y))
    styles = tuple(s for s in STYLES if matches and all(s in match.styles for match in matches))
    debris = _debris(pixels, tone, matches)
    return Detection(background, tuple(match.item for match in matches), styles, debris)


def _as_pixels(image: Bytes) -> Floats:
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        wanted = f"uint8 [{IMAGE_SIZE}, {IMAGE_SIZE}, 3]"
        got = f"{image.dtype} {list(image.shape)}"
        raise ValueError(f"the checker takes {wanted}, not {got}: scale the picture down first")
    return image.astype(np.float32)


def _distance(pixels: Floats, other: Floats) -> Floats:
    """RGB distance a pixel, float [H, W]."""
    return np.sqrt(((pixels - other) ** 2).sum(axis=-1))


def _background(pixels: Floats) -> str | None:
    """The background that fills most of the picture, None when none fills enough."""
    shares = {
        name: float((_distance(pixels, np.array(tone, np.float32)) < BACKGROUND_RADIUS).mean())
        for name, tone in BACKGROUNDS.items()
    }
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= BACKGROUND_SHARE else None


def _recognise(
    pixels: Floats, labels: NDArray[np.int32], label: int, background: str
) -> _Match | None:
    """The object that a component is, None when it is none."""
    ys, xs = np.nonzero(labels == label)
    bottom, middle = int(ys.max()), int(xs.min() + xs.max() + 1) // 2
    fits = max(np.ptp(xs), np.ptp(ys)) < FRAME - 4
    if len(ys) < SMALLEST or not fits:
        return None
    frame = np.zeros((FRAME, FRAME), np.float32)
    frame[ys - bottom + FRAME - 3, xs - middle + FRAME // 2] = 1
    templates = _templates()
    shared = templates.masks @ frame.ravel()
    overlap = shared / (templates.areas + len(ys) - shared)
    floor = max(MIN_IOU, float(overlap.max()) - IOU_MARGIN)
    order = np.argsort(-overlap)[:MAX_CANDIDATES]
    best: _Match | None = None
    lowest = MAX_ERROR
    for index in order[overlap[order] >= floor]:
        shape, size, dy, dx = templates.entries[index]
        y, x = bottom + dy, middle + dx
        half = RADIUS[size] + 1
        if not (half <= y <= IMAGE_SIZE - half and half <= x <= IMAGE_SIZE - half):
            continue
        box = (slice(y - half, y + half), slice(x - half, x + half))
        own = (labels[box] == 0) | (labels[box] == label)
        errors = _errors(pixels[box], own, shape, size, background)
        error = float(errors.min())
        if error < lowest:
            lowest = error
            styles, colors = np.nonzero(errors <= error + SAME_ERROR)
            color = list(COLORS)[int(np.unravel_index(errors.argmin(), errors.shape)[1])]
            same = [
                STYLES[s] for s, c in zip(styles, colors, strict=True) if list(COLORS)[c] == color
            ]
            best = _Match(Object(shape, color, size, x, y), tuple(same))
    return best


@dataclass(frozen=True)
class _Templates:
    masks: Floats  # [K, FRAME * FRAME], binary silhouettes: bottom on row FRAME - 3, centred
    areas: Floats  # [K]
    entries: list[
        tuple[str, str, int, int]
    ]  # shape, size, sprite centre from the bottom and middle


@cache
def _templates() -> _Templates:
    """Every silhouette, shifted by up to a pixel each way."""
    masks, entries = [], []
    for shape in SHAPES:
        for size in RADIUS:
            inside = coverage_mask(shape, size) > SEEN_COVERAGE
            ys, xs = np.nonzero(inside)
            bottom, middle = int(ys.max()), int(xs.min() + xs.max() + 1) // 2
            half = inside.shape[0] // 2
            for dy in SLACK:
                for dx in SLACK:
                    frame = np.zeros((FRAME, FRAME), np.float32)
                    frame[ys - bottom + FRAME - 3 + dy, xs - middle + FRAME // 2 + dx] = 1
                    masks.append(frame.ravel())
                    entries.append((shape, size, half - bottom + dy, half - middle + dx))
    stacked = np.stack(masks)
    return _Templates(stacked, stacked.sum(axis=1), entries)


def _errors(crop: Floats, own: Bools, shape: str, size: str, background: str) -> Floats:
    """Mean absolute difference of a crop from the sprites of all looks, float [styles, colors].

    The mean is over the pixels of the object and of a rim around it; `own` leaves out those of
    other objects.
    """
    looks, weight = _looks(shape, size, background)
    weight = weight * own
    differences = np.abs(looks - crop).mean(axis=-1)
    return np.tensordot(differences, weight, 2) / max(float(weight.sum()), 1.0)


@cache
def _looks(shape: str, size: str, background: str) -> tuple[Floats, Floats]:
    """An object over the background in all looks [styles, colors, S, S, 3], and its place [S, S]."""
    coverage = coverage_mask(shape, size)
    tone = np.array(BACKGROUNDS[background], np.float32)
    paints = np.stack(
        [[sprite(shape, color, size, style)[1] for color in COLORS] for style in STYLES]
    )
    looks = tone + coverage[..., None] * (paints - tone)
    near = ndimage.binary_dilation(coverage > 0, np.ones((3, 3)))
    return looks.astype(np.float32), near.astype(np.float32)


def _debris(pixels: Floats, tone: Floats, matches: list[_Match]) -> int:
    """Counts the pixels unlike the expected picture, small specks and soft edges aside."""
    expected = np.empty_like(pixels)
    expected[:] = tone
    for match in matches:
        draw(expected, match.item, match.styles[0])
    high = ndimage.maximum_filter(expected, (3, 3, 1))
    low = ndimage.minimum_filter(expected, (3, 3, 1))
    tolerance = RESIDUAL + EDGE_RESIDUAL * _distance(high, low)
    labels, _ = ndimage.label(_distance(pixels, expected) > tolerance, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    return int(areas[areas > SPECK].sum())
