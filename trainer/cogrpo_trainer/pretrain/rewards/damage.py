"""What generators get wrong, done to pictures on purpose: object by object, patch by patch.

A damage takes a canvas (float [64, 64, 3], changed in place), the scene it shows and a donor, and
spoils some pixels. `codes_damage.py` does the same to tokens.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cogrpo_core.shapes.render import draw
from cogrpo_core.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    RADIUS,
    SHAPES,
    STYLES,
    Object,
    Scene,
)
from cogrpo_trainer.pretrain.patches import PATCH

Bytes = NDArray[np.uint8]
Canvas = NDArray[np.float32]
Damage = Callable[[Canvas, Scene, Canvas, np.random.Generator], None]

MAX_NOISE = 8.0  # sigma of the noise that pictures of both sides may have
GRID = IMAGE_SIZE // PATCH


def mild_noise(image: Bytes, rng: np.random.Generator) -> Bytes:
    """The picture, or in one of two cases the picture with a little noise."""
    if rng.random() < 0.5:
        return image
    noise = rng.standard_normal(image.shape, np.float32) * (rng.random() * MAX_NOISE)
    return as_bytes(image + noise)


def as_bytes(canvas: Canvas) -> Bytes:
    """Rounded and clipped to uint8."""
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def some_object(scene: Scene, rng: np.random.Generator) -> Object:
    """A random object of the scene."""
    return scene.objects[int(rng.integers(len(scene.objects)))]


def box(item: Object) -> tuple[slice, slice]:
    """Rows and columns that an object fills, within the picture."""
    reach = RADIUS[item.size] + 1
    return (
        slice(max(0, item.y - reach), min(IMAGE_SIZE, item.y + reach)),
        slice(max(0, item.x - reach), min(IMAGE_SIZE, item.x + reach)),
    )


def part(item: Object, rng: np.random.Generator) -> tuple[slice, slice]:
    """About half of an object's box, from one of its four sides."""
    rows, columns = box(item)
    share = rng.uniform(0.35, 0.65)
    row = rows.start + round(share * (rows.stop - rows.start))
    column = columns.start + round(share * (columns.stop - columns.start))
    return (
        (slice(rows.start, row), columns),
        (slice(row, rows.stop), columns),
        (rows, slice(columns.start, column)),
        (rows, slice(column, columns.stop)),
    )[int(rng.integers(4))]


def patch_of(item: Object, rng: np.random.Generator) -> tuple[slice, slice]:
    """A token's pixels, in or beside an object."""
    rows, columns = box(item)
    y = int(rng.integers(rows.start, rows.stop)) // PATCH * PATCH
    x = int(rng.integers(columns.start, columns.stop)) // PATCH * PATCH
    return slice(y, y + PATCH), slice(x, x + PATCH)


def tone(scene: Scene) -> Canvas:
    """The background's color."""
    return np.array(BACKGROUNDS[scene.background], np.float32)


def foreign_patches(canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator) -> None:
    """One to four patches of another picture."""
    busy = np.abs(donor - donor[0, 0]).sum(-1).reshape(GRID, PATCH, GRID, PATCH).max((1, 3)) > 60
    spots = np.argwhere(busy)
    for _ in range(int(rng.integers(1, 5))):
        rows, columns = patch_of(some_object(scene, rng), rng)
        y, x = spots[int(rng.integers(len(spots)))] * PATCH if len(spots) else (0, 0)
        canvas[rows, columns] = donor[y : y + PATCH, x : x + PATCH]


def missing_patches(canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator) -> None:
    """One to four patches of an object are background."""
    item = some_object(scene, rng)
    for _ in range(int(rng.integers(1, 5))):
        canvas[patch_of(item, rng)] = tone(scene)


def half_object(canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator) -> None:
    """About half of an object is background."""
    canvas[part(some_object(scene, rng), rng)] = tone(scene)


def merged_object(canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator) -> None:
    """Another object, most often a like one, overlaps one of the scene."""
    item = some_object(scene, rng)
    like = rng.random() < 0.6
    reach = RADIUS[item.size]
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.5) * reach
    x = int(np.clip(item.x + far * np.cos(angle), reach, IMAGE_SIZE - reach))
    y = int(np.clip(item.y + far * np.sin(angle), reach, IMAGE_SIZE - reach))
    if max(abs(x - item.x), abs(y - item.y)) < 3:
        x += 4 if x < IMAGE_SIZE // 2 else -4
    shape = item.shape if like else str(rng.choice(SHAPES))
    color = item.color if like else str(rng.choice(list(COLORS)))
    draw(canvas, Object(shape, color, item.size, x, y), scene.style)


def mixed_colors(canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator) -> None:
    """A part of an object has another color."""
    item = some_object(scene, rng)
    color = str(rng.choice([name for name in COLORS if name != item.color]))
    repaint(canvas, item, color, scene.style, _pieces(item, rng))


def mixed_styles(canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator) -> None:
    """A part of an object, or all of one of several, is drawn in another style."""
    item = some_object(scene, rng)
    names = [name for name in STYLES if name != scene.style]
    if item.color == "black":  # flat and cartoon look the same
        names = [name for name in names if name not in ("flat", "cartoon")]
    whole = len(scene.objects) > 1 and rng.random() < 0.5
    pieces = [box(item)] if whole else _pieces(item, rng)
    repaint(canvas, item, item.color, str(rng.choice(names)), pieces)


def _pieces(item: Object, rng: np.random.Generator) -> list[tuple[slice, slice]]:
    """Half an object, or some of its patches."""
    if rng.random() < 0.5:
        return [part(item, rng)]
    return [patch_of(item, rng) for _ in range(int(rng.integers(2, 6)))]


def repaint(
    canvas: Canvas, item: Object, color: str, style: str, pieces: list[tuple[slice, slice]]
) -> None:
    """Draws an object again in another look, in some places only."""
    other = canvas.copy()
    draw(other, Object(item.shape, color, item.size, item.x, item.y), style)
    for rows, columns in pieces:
        canvas[rows, columns] = other[rows, columns]


def debris(canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator) -> None:
    """One to three soft blobs of a few pixels, anywhere."""
    ys, xs = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    for _ in range(int(rng.integers(1, 4))):
        y, x = rng.uniform(2, IMAGE_SIZE - 2, 2)
        wide, high = rng.uniform(0.8, 2.8, 2)
        distance = np.sqrt(((ys - y) / high) ** 2 + ((xs - x) / wide) ** 2)
        alpha = np.clip(1.5 - distance, 0, 1)[..., None] * rng.uniform(0.5, 1)
        color = np.array(COLORS[str(rng.choice(list(COLORS)))], np.float32)
        canvas += alpha * (color - canvas)


def soft_object(canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator) -> None:
    """One object, or the whole picture, is blurred."""
    where = box(some_object(scene, rng)) if rng.random() < 0.6 else (slice(None), slice(None))
    sigma = rng.uniform(1.2, 2.6)
    canvas[where] = ndimage.gaussian_filter(canvas, (sigma, sigma, 0))[where]


def ragged_object(canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator) -> None:
    """The patches of an object are shifted against each other by a pixel or two."""
    before = np.pad(canvas, ((2, 2), (2, 2), (0, 0)), mode="edge")
    rows, columns = box(some_object(scene, rng))
    for y in range(rows.start // PATCH * PATCH, rows.stop, PATCH):
        for x in range(columns.start // PATCH * PATCH, columns.stop, PATCH):
            if rng.random() < 0.7:
                dy, dx = rng.integers(0, 5, 2)
                canvas[y : y + PATCH, x : x + PATCH] = before[
                    y + dy : y + dy + PATCH, x + dx : x + dx + PATCH
                ]


def second_background(
    canvas: Canvas, scene: Scene, donor: Canvas, rng: np.random.Generator
) -> None:
    """Some patches, or a side of the picture, have another background."""
    names = [name for name in BACKGROUNDS if name != scene.background]
    color = np.array(BACKGROUNDS[str(rng.choice(names))], np.float32)
    free = (np.abs(canvas - tone(scene)).sum(-1) < 40)[..., None]
    area = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 1), np.bool_)
    height, width = rng.integers(1, 8, 2) * PATCH
    y, x = rng.integers(0, GRID, 2) * PATCH
    area[y : y + height, x : x + width] = True
    canvas[:] = np.where(area & free, color, canvas)


DAMAGES: dict[str, Damage] = {
    "foreign patches": foreign_patches,
    "missing patches": missing_patches,
    "half object": half_object,
    "merged object": merged_object,
    "mixed colors": mixed_colors,
    "mixed styles": mixed_styles,
    "debris": debris,
    "soft object": soft_object,
    "ragged object": ragged_object,
    "second background": second_background,
}


def damaged(
    image: Bytes, scene: Scene, donor: Bytes, times: int, rng: np.random.Generator
) -> Bytes:
    """The picture after `times` random damages, uint8 [64, 64, 3].

    A damage may by chance change nothing that can be seen; then it is another's turn.
    """
    canvas, other = image.astype(np.float32), donor.astype(np.float32)
    kinds = list(DAMAGES.values())
    done = 0
    while done < times:
        before = canvas.copy()
        kinds[int(rng.integers(len(kinds)))](canvas, scene, other, rng)
        done += visible(canvas, before)
    return as_bytes(canvas)


def visible(canvas: Canvas, before: Canvas) -> bool:
    """Whether two canvases differ clearly in more than three pixels."""
    return int((np.abs(canvas - before).sum(-1) > 60).sum()) > 3
