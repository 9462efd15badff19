"""Draws a scene: anti-aliased sprites, made once by supersampling, composed over the background."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from cogrpo_core.shapes.scenes import BACKGROUNDS, COLORS, IMAGE_SIZE, RADIUS, Object, Scene

SUPERSAMPLING = 8
OUTLINE = 1.4  # width of the cartoon style's outline, pixels
OUTLINE_COLOR = (25.0, 25.0, 25.0)

Floats = NDArray[np.float32]


def render(scene: Scene) -> NDArray[np.uint8]:
    """The picture of `scene`, uint8 [64, 64, 3]."""
    image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for item in scene.objects:
        draw(image, item, scene.style)
    return np.rint(image).astype(np.uint8)


def draw(image: Floats, item: Object, style: str) -> None:
    """Draws one object over `image` (float [H, W, 3]) in place, cut at the picture's edge."""
    coverage, paint = sprite(item.shape, item.color, item.size, style)
    half = coverage.shape[0] // 2
    top, left = item.y - half, item.x - half
    rows = slice(max(0, -top), min(2 * half, image.shape[0] - top))
    columns = slice(max(0, -left), min(2 * half, image.shape[1] - left))
    alpha = coverage[rows, columns, None]
    region = image[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    region += alpha * (paint[rows, columns] - region)


@cache
def coverage_mask(shape: str, size: str) -> Floats:
    """How much of each pixel the shape covers, float [S, S] with the centre in the middle."""
    return _shrink(_inside(shape, RADIUS[size]).astype(np.float32))


@cache
def sprite(shape: str, color: str, size: str, style: str) -> tuple[Floats, Floats]:
    """(coverage [S, S], paint [S, S, 3] in 0..255) of an object."""
    coverage = coverage_mask(shape, size)
    side = coverage.shape[0]
    base = np.array(COLORS[color], np.float32)
    paint: NDArray[np.floating] = np.broadcast_to(base, (side, side, 3)).copy()
    if style == "cartoon":
        inside = _inside(shape, RADIUS[size])
        depth = ndimage.distance_transform_edt(inside)
        fill = _shrink((depth > OUTLINE * SUPERSAMPLING).astype(np.float32))
        share = (fill / np.maximum(coverage, 1e-6))[..., None]
        paint = share * paint + (1 - share) * np.array(OUTLINE_COLOR, np.float32)
    elif style == "shaded":
        height = np.linspace(1.0, -1.0, side, dtype=np.float32)[:, None, None]
        lit = base + np.maximum(height, 0) * 0.75 * (255 - base)
        paint = np.broadcast_to(lit * (1 + 0.5 * np.minimum(height, 0)), paint.shape).copy()
    elif style == "striped":
        other = base * 0.5 if color != "black" else np.array((110.0, 110.0, 110.0), np.float32)
        rows = (np.arange(side) - side // 2) % 4 >= 2
        paint[rows] = other
    return coverage, paint.astype(np.float32)


def _shrink(mask: Floats) -> Floats:
    side = mask.shape[0] // SUPERSAMPLING
    means: Floats = mask.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING).mean(axis=(1, 3))
    return means


def _inside(shape: str, radius: int) -> NDArray[np.bool_]:
    """The supersampled silhouette, bool [S*8, S*8]."""
    side = 2 * (radius + 1) * SUPERSAMPLING
    middle, r = side / 2, radius * SUPERSAMPLING
    canvas = Image.new("1", (side, side))
    pen = ImageDraw.Draw(canvas)

    def disc(x: float, y: float, size: float, fill: int = 1) -> None:
        pen.ellipse((x - size, y - size, x + size - 1, y + size - 1), fill=fill)

    def polygon(points: list[tuple[float, float]]) -> None:
        pen.polygon([(middle + r * x, middle + r * y) for x, y in points], fill=1)

    if shape == "circle":
        disc(middle, middle, r)
    elif shape == "ring":
        disc(middle, middle, r)
        disc(middle, middle, 0.52 * r, fill=0)
    elif shape == "square":
        polygon([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)])
    elif shape == "triangle":
        polygon([(0, -1), (1, 0.86), (-1, 0.86)])
    elif shape == "diamond":
        polygon([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])
    elif shape == "cross":
        polygon([(-0.33, -1), (0.33, -1), (0.33, 1), (-0.33, 1)])
        polygon([(-1, -0.33), (1, -0.33), (1, 0.33), (-1, 0.33)])
    elif shape == "star":
        angles = np.pi * np.arange(10) / 5 - np.pi / 2
        x = np.where(np.arange(10) % 2 == 0, 1.08, 0.45) * np.cos(angles)
        y = np.where(np.arange(10) % 2 == 0, 1.08, 0.45) * np.sin(angles) + 0.06
        polygon([(float(a), float(b)) for a, b in zip(x, y, strict=True)])
    elif shape == "heart":
        turn = np.linspace(0, 2 * np.pi, 97)
        x = np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        polygon([(float(a), float(b / 16 - 0.1)) for a, b in zip(x, y, strict=True)])
    else:
        raise AssertionError(f"unknown shape {shape}")
    return np.asarray(canvas, dtype=bool)
