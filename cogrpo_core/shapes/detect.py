"""Finds the objects of a picture: for each patch of foreground the sprite that explains it best.

What the found objects over the background do not explain is debris. `render.py` draws the sprites,
`checker.py` judges what is found here.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
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

# Distances are Euclidean in RGB, 0 to 441. Two backgrounds differ by 64 or more.
BACKGROUND_RADIUS = 30.0  # a pixel this near to the background belongs to it
BACKGROUND_SHARE = 0.4  # of the picture that the background fills at least
SEEN_COVERAGE = 0.15  # of a pixel by a sprite, from which on it stands out from the background
SMALLEST, LARGEST = 12, 28  # an object's least pixels, and its greatest width and height
BOX_SLACK = 4  # pixels by which an object's width and height may be off its sprite's
SHIFT = 2  # pixels by which an object's lower edge and middle may be off its sprite's
MAX_ERROR = 45.0  # root of an object's squared residue a channel and pixel of its outline
SAME_ERROR = 1.0  # looks this close in error are the same: a black cartoon is a flat black
RESIDUAL = 55.0  # distance from the expected picture that a plain area may have
EDGE_RESIDUAL = 0.45  # the same beside an edge, as a share of the edge's contrast, in addition
SPECK = 3  # pixels of unexplained residue, connected, that are forgiven

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Labels = NDArray[np.int32]

EIGHT = np.ones((3, 3), np.int8)  # neighbours of a pixel
LOOKS = [(style, color) for style in STYLES for color in COLORS]


class PictureError(ValueError):
    """Pixels that the checker cannot take."""


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


@dataclass(frozen=True)
class _Silhouette:
    """A shape of a size over a background, in all K looks; colors count from the background's."""

    shape: str
    size: str
    rim: int  # pixels of its outline, two wide: where a good copy errs
    height: int  # of what stands out
    width: int
    bottom: int  # the first row below it
    middle: int
    looks: Floats  # [S * S * 3, K]
    energy: Floats  # [K], sums of the looks' squares

    @property
    def side(self) -> int:
        """S."""
        return 2 * (RADIUS[self.size] + 1)


def detect(image: Bytes) -> Detection:
    """Finds background, objects, style and debris of a picture, uint8 [64, 64, 3].

    Raises `PictureError` for another size or type: scale larger pictures down first.
    """
    pixels = _as_pixels(image)
    background = _background(pixels)
    if background is None:
        return Detection(None, (), (), IMAGE_SIZE * IMAGE_SIZE)
    tone = np.array(BACKGROUNDS[background], np.float32)
    labels, number = ndimage.label(_distance(pixels, tone) > BACKGROUND_RADIUS, EIGHT)
    found = [_recognise(pixels - tone, labels, label, background) for label in range(1, number + 1)]
    matches = [match for match in found if match is not None]
    matches.sort(key=lambda match: (match.item.x, match.item.y))
    styles = tuple(s for s in STYLES if matches and all(s in match.styles for match in matches))
    debris = _debris(pixels, tone, matches)
    return Detection(background, tuple(match.item for match in matches), styles, debris)


def _as_pixels(image: Bytes) -> Floats:
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        wanted = f"uint8 [{IMAGE_SIZE}, {IMAGE_SIZE}, 3]"
        got = f"{image.dtype} {list(image.shape)}"
        raise PictureError(f"the checker takes {wanted}, not {got}: scale the picture down first")
    return image.astype(np.float32)


def _distance(pixels: Floats, other: Floats) -> Floats:
    """RGB distance a pixel, float [H, W]."""
    squares: Floats = ((pixels - other) ** 2).sum(axis=-1)
    return np.sqrt(squares)


def _background(pixels: Floats) -> str | None:
    """The background that fills most of the picture, None when none fills enough."""
    shares = {
        name: float((_distance(pixels, np.array(tone, np.float32)) < BACKGROUND_RADIUS).mean())
        for name, tone in BACKGROUNDS.items()
    }
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= BACKGROUND_SHARE else None


def _recognise(relief: Floats, labels: Labels, label: int, background: str) -> _Match | None:
    """The object that a component is: the sprite that leaves the least residue, None if too much.

    `relief` [H, W, 3] counts from the background. Over all sprites and places, the residue
    sum (relief - sprite)^2 is least where sum sprite^2 - 2 sum sprite relief is.
    """
    ys, xs = np.nonzero(labels == label)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    height, width = bottom - top, right - left
    if len(ys) < SMALLEST or max(height, width) > LARGEST:
        return None
    pad = LARGEST + SHIFT
    alone = np.where(((labels == label) | (labels == 0))[..., None], relief, 0)
    alone = np.pad(alone, ((pad, pad), (pad, pad), (0, 0)))
    least = np.inf
    best: tuple[_Silhouette, int, int, Floats] | None = None
    for kind in _silhouettes(background):
        if max(abs(kind.height - height), abs(kind.width - width)) > BOX_SLACK:
            continue
        y = bottom - kind.bottom - SHIFT
        x = (left + right) // 2 - kind.middle - SHIFT
        reach = kind.side + 2 * SHIFT
        window = alone[y + pad : y + pad + reach, x + pad : x + pad + reach]
        places = sliding_window_view(window, (kind.side, kind.side, 3)).reshape(-1, len(kind.looks))
        gains = kind.energy - 2 * (places @ kind.looks)  # [places, K]
        if gains.min() < least:
            least = float(gains.min())
            dy, dx = divmod(int(gains.min(axis=1).argmin()), 2 * SHIFT + 1)
            best = (kind, int(y) + dy, int(x) + dx, gains.min(axis=0))
    if best is None:
        return None
    kind, y, x, gains = best
    border = slice(pad + min(y, top) - SHIFT, pad + max(y + kind.side, bottom) + SHIFT)
    across = slice(pad + min(x, left) - SHIFT, pad + max(x + kind.side, right) + SHIFT)
    total = float((alone[border, across] ** 2).sum())
    errors = np.sqrt(np.maximum(total + gains, 0) / (3 * kind.rim))
    if errors.min() > MAX_ERROR:
        return None
    color = LOOKS[int(errors.argmin())][1]
    same = zip(LOOKS, errors <= errors.min() + SAME_ERROR, strict=True)
    styles = tuple(style for (style, other), fits in same if fits and other == color)
    half = kind.side // 2
    return _Match(Object(kind.shape, color, kind.size, x + half, y + half), styles)


@cache
def _silhouettes(background: str) -> tuple[_Silhouette, ...]:
    """Every shape in every size."""
    return tuple(_silhouette(s, size, background) for s in SHAPES for size in RADIUS)


def _silhouette(shape: str, size: str, background: str) -> _Silhouette:
    coverage = coverage_mask(shape, size)
    ys, xs = np.nonzero(coverage > SEEN_COVERAGE)
    inside = coverage > 0.5
    paints = np.stack([sprite(shape, color, size, style)[1] for style, color in LOOKS])
    tone = np.array(BACKGROUNDS[background], np.float32)
    looks = (coverage[..., None] * (paints - tone)).reshape(len(LOOKS), -1).astype(np.float32)
    return _Silhouette(
        shape,
        size,
        rim=int((ndimage.binary_dilation(inside, EIGHT) & ~ndimage.binary_erosion(inside)).sum()),
        height=int(np.ptp(ys)) + 1,
        width=int(np.ptp(xs)) + 1,
        bottom=int(ys.max()) + 1,
        middle=int(xs.min() + xs.max() + 1) // 2,
        looks=np.ascontiguousarray(looks.T),
        energy=(looks**2).sum(axis=1),
    )


def _debris(pixels: Floats, tone: Floats, matches: list[_Match]) -> int:
    """Counts the pixels unlike the expected picture, small specks and soft edges aside."""
    expected = np.empty_like(pixels)
    expected[:] = tone
    for match in matches:
        draw(expected, match.item, match.styles[0])
    high = ndimage.maximum_filter(expected, (3, 3, 1))
    low = ndimage.minimum_filter(expected, (3, 3, 1))
    tolerance = RESIDUAL + EDGE_RESIDUAL * _distance(high, low)
    labels, _ = ndimage.label(_distance(pixels, expected) > tolerance, EIGHT)
    areas = np.bincount(labels.ravel())[1:]
    return int(areas[areas > SPECK].sum())
