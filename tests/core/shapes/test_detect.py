"""The detector on true pictures of all that the world can show, and on what it must refuse."""

from dataclasses import replace

import numpy as np
import pytest

from cogrpo_core.shapes.detect import PictureError, detect
from cogrpo_core.shapes.render import render
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


def is_colorless(item: Object, style: str) -> bool:
    """A small cartoon ring is all outline."""
    return (item.shape, item.size, style) == ("ring", "small", "cartoon")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_object_is_recognised_in_every_look(background, style):
    for size, radius in RADIUS.items():
        pitch = 2 * radius + 5
        centres = list(range(radius + 1, IMAGE_SIZE - radius, pitch))
        places = [(x, y) for x in centres for y in centres][:9]
        kinds = [(shape, color) for color in COLORS for shape in SHAPES]
        for start in range(0, len(kinds), len(places)):
            objects = tuple(
                Object(shape, color, size, x, y)
                for (shape, color), (x, y) in zip(kinds[start:], places, strict=False)
            )
            found = detect(render(Scene(objects, background, style)))
            assert found.background == background
            assert found.clean
            assert len(found.objects) == len(objects)
            pairs = zip(sorted(objects, key=lambda o: (o.x, o.y)), found.objects, strict=True)
            for wanted, item in pairs:
                if is_colorless(wanted, style):
                    item = replace(item, color=wanted.color)
                assert item == wanted
            if not any(is_colorless(item, style) for item in objects):
                assert style in found.styles


def test_positions_between_the_lattice_points_are_exact():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x, y = (int(v) for v in rng.integers(12, 53, 2))
        item = Object(str(rng.choice(SHAPES)), str(rng.choice(list(COLORS))), "large", x, y)
        assert detect(render(Scene((item,)))).objects == (item,)


def test_objects_of_two_styles_have_no_style_in_common():
    canvas = render(Scene((Object("circle", "red", "medium", 16, 32),)))
    other = render(Scene((Object("circle", "red", "medium", 48, 32),), style="striped"))
    canvas[:, 32:] = other[:, 32:]
    found = detect(canvas)
    assert found.clean
    assert len(found.objects) == 2
    assert found.style is None


def test_black_fits_two_styles():
    found = detect(render(Scene((Object("heart", "black", "large", 32, 32),), style="cartoon")))
    assert found.styles == ("flat", "cartoon")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((128, 128, 3), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(PictureError, match="uint8"):
        detect(image)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_is_clean_and_empty(background):
    found = detect(render(Scene((), background)))
    assert (found.background, found.objects, found.debris) == (background, (), 0)
    assert found.style is None


def test_a_picture_without_background_is_all_debris():
    for value in (0, 128):
        found = detect(np.full((64, 64, 3), value, np.uint8))
        assert found.background is None
        assert found.debris == 64 * 64
        assert not found.clean


def test_two_backgrounds_in_one_picture_are_debris():
    for name in BACKGROUNDS:
        for other in BACKGROUNDS:
            if name != other:
                image = render(Scene((Object("star", "red", "medium", 16, 16),), name))
                image[40:60, 30:60] = BACKGROUNDS[other]
                assert detect(image).debris >= 400
