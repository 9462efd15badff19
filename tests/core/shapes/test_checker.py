"""The judge: right on true pictures, lenient to slight blur and noise, strict to every wrong."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cogrpo_core.shapes.checker import TASKS, TaskError, check, judge, long_score
from cogrpo_core.shapes.detect import detect
from cogrpo_core.shapes.render import render
from cogrpo_core.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    RADIUS,
    SHAPES,
    Group,
    Object,
    Scene,
    Spec,
    sample_scene,
    sample_spec,
)
from cogrpo_core.shapes.suites import mean_score, reconstruction_agreement, task_spec, truth_cases

CASES = 60


def other_than(names, name, rng):
    return str(rng.choice([one for one in names if one != name]))


def changed(scene, rng, **attributes):
    """The picture with one object changed; an attribute is a function of the object."""
    i = int(rng.integers(len(scene.objects)))
    item = scene.objects[i]
    item = replace(item, **{name: value(item) for name, value in attributes.items()})
    return render(replace(scene, objects=(*scene.objects[:i], item, *scene.objects[i + 1 :])))


def wrong_color(scene, rng):
    return changed(scene, rng, color=lambda o: other_than(list(COLORS), o.color, rng))


def wrong_shape(scene, rng):
    return changed(scene, rng, shape=lambda o: other_than(SHAPES, o.shape, rng))


def one_too_few(scene, rng):
    i = int(rng.integers(len(scene.objects)))
    return render(replace(scene, objects=scene.objects[:i] + scene.objects[i + 1 :]))


def one_too_many(scene, rng):
    """The picture with a small twin of its first object where there is most room."""

    def room(x, y):
        return min(max(abs(x - o.x), abs(y - o.y)) - RADIUS[o.size] for o in scene.objects)

    free = [(x, y) for x in range(6, 59, 4) for y in range(6, 59, 4)]
    x, y = max(free, key=lambda place: room(*place))
    extra = replace(scene.objects[0], size="small", x=x, y=y)
    return render(replace(scene, objects=(*scene.objects, extra)))


def swapped(scene, rng):
    turned = (replace(o, x=IMAGE_SIZE - o.x, y=IMAGE_SIZE - o.y) for o in scene.objects)
    return render(replace(scene, objects=tuple(turned)))


def stamped(image, patch_at, rng):
    """The picture with a 4x4 patch at a token's place where at least half of it is seen."""
    while True:
        x, y = (int(v) * 4 for v in rng.integers(0, 16, 2))
        stained = image.copy()
        stained[y : y + 4, x : x + 4] = patch_at()
        seen = np.linalg.norm(stained.astype(float) - image, axis=-1) > 70
        if seen.sum() >= 8:
            return stained


def with_plain_patch(scene, rng):
    colors = np.array(list(COLORS.values()), np.uint8)
    return stamped(render(scene), lambda: rng.choice(colors), rng)


def with_foreign_token(scene, rng):
    """A 4x4 patch out of another picture, as a wrong token looks."""
    foreign = render(sample_scene(sample_spec(rng), rng))

    def patch():
        x, y = (int(v) * 4 for v in rng.integers(0, 16, 2))
        return foreign[y : y + 4, x : x + 4]

    return stamped(render(scene), patch, rng)


def merged(scene, rng):
    """Another object half over the first."""
    first = scene.objects[0]
    step = int(rng.integers(RADIUS[first.size], 2 * RADIUS[first.size] - 2))
    dx, dy = ((step, 0), (-step, 0), (0, step), (0, -step))[rng.integers(4)]
    shape = other_than(SHAPES, first.shape, rng)
    color = other_than(list(COLORS), first.color, rng)
    second = Object(shape, color, first.size, first.x + dx, first.y + dy)
    return render(replace(scene, objects=(*scene.objects, second)))


def half_missing(scene, rng):
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    image, reach = render(scene), RADIUS[item.size] + 1
    top, bottom, left, right = item.y - reach, item.y + reach, item.x - reach, item.x + reach
    side = int(rng.integers(4))
    rows = slice(item.y if side == 0 else top, item.y if side == 1 else bottom)
    columns = slice(item.x if side == 2 else left, item.x if side == 3 else right)
    image[rows, columns] = BACKGROUNDS[scene.background]
    return image


def noisy(scene, rng, sigma=60.0):
    image = render(scene) + rng.normal(0, sigma, (IMAGE_SIZE, IMAGE_SIZE, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def pure_noise(scene, rng):
    return rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)


def blurred(image, sigma):
    return np.rint(ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))).astype(np.uint8)


def cases(task, n=CASES, seed=1):
    rng = np.random.default_rng([seed, TASKS.index(task)])
    specs = [task_spec(task, rng) for _ in range(n)]
    return [(spec, sample_scene(spec, rng)) for spec in specs]


WRONGS = (
    wrong_shape,
    one_too_few,
    one_too_many,
    with_plain_patch,
    with_foreign_token,
    merged,
    half_missing,
    noisy,
    pure_noise,
)
TASKS_AND_WRONGS = [
    *[(task, wrong) for task in TASKS for wrong in WRONGS],
    ("colors", wrong_color),
    ("color_attribution", wrong_color),
    ("position", swapped),
]


@pytest.mark.parametrize("task", [*TASKS, "long"])
def test_true_pictures_are_judged_right(task):
    truth = truth_cases(task, 3 * CASES, seed=1)
    assert mean_score(task, *zip(*truth, strict=True)) >= 0.98


@pytest.mark.parametrize(("task", "wrong"), TASKS_AND_WRONGS)
def test_wrong_pictures_are_rejected(task, wrong):
    rng = np.random.default_rng(2)
    passed = [judge(task, spec, detect(wrong(scene, rng))) for spec, scene in cases(task)]
    assert np.mean(passed) <= 0.02


@pytest.mark.parametrize("task", TASKS)
def test_slight_noise_and_blur_change_no_judgement(task):
    rng = np.random.default_rng(3)
    pictures = [(spec, scene, render(scene)) for spec, scene in cases(task)]
    noise = [judge(task, spec, detect(noisy(scene, rng, 6.0))) for spec, scene, _ in pictures]
    blur = [judge(task, spec, detect(blurred(image, 0.7))) for spec, _, image in pictures]
    assert np.mean(noise) >= 0.95
    assert np.mean(blur) >= 0.95


def test_a_heavy_blur_is_rejected():
    passed = [
        judge("counting", spec, detect(blurred(render(s), 2.5))) for spec, s in cases("counting")
    ]
    assert np.mean(passed) <= 0.02


def test_agreement_after_reconstruction_tells_good_from_bad():
    perfect = reconstruction_agreement(lambda pictures: pictures, n=20)
    assert set(perfect) == {*TASKS, "long"}
    assert min(perfect.values()) >= 0.95
    gray = reconstruction_agreement(lambda pictures: pictures // 2, n=5)
    assert max(gray[task] for task in TASKS) == 0.0


RED_CIRCLE, BLUE_SQUARE = Group("circle", "red"), Group("square", "blue")
PAIR = Scene(
    (Object("circle", "red", "medium", 16, 32), Object("square", "blue", "medium", 48, 32))
)


def test_each_task_asks_for_its_own_aspect():
    found = detect(render(PAIR))
    exchanged = Spec((Group("circle", "blue"), Group("square", "red")))
    assert judge("two_objects", exchanged, found)
    assert not judge("color_attribution", exchanged, found)
    assert judge("color_attribution", Spec((BLUE_SQUARE, RED_CIRCLE)), found)
    assert judge("position", Spec((RED_CIRCLE, BLUE_SQUARE), "left of"), found)
    for relation in ("right of", "above", "below"):
        assert not judge("position", Spec((RED_CIRCLE, BLUE_SQUARE), relation), found)


def test_colors_tell_two_equal_shapes_apart_in_a_relation():
    objects = (Object("star", "red", "medium", 16, 32), Object("star", "blue", "medium", 48, 32))
    found = detect(render(Scene(objects)))
    stars = (Group("star", "red"), Group("star", "blue"))
    assert judge("position", Spec(stars, "left of"), found)
    assert not judge("position", Spec(stars[::-1], "left of"), found)


def test_an_unknown_task_is_an_error():
    with pytest.raises(TaskError, match="single_object"):
        judge("poetry", Spec((RED_CIRCLE,)), detect(render(PAIR)))


def test_the_verdict_names_each_aspect():
    spec = Spec((RED_CIRCLE, BLUE_SQUARE), "left of")
    assert check(render(PAIR), spec).everything
    verdict = check(render(replace(PAIR, background="sky", style="striped")), spec)
    assert (verdict.shapes, verdict.colors, verdict.relation) == (True, True, True)
    assert (verdict.background, verdict.style, verdict.everything) == (False, False, False)
    verdict = check(
        render(PAIR), Spec((replace(RED_CIRCLE, size="large", place="top"), BLUE_SQUARE))
    )
    assert (verdict.sizes, verdict.places, verdict.count) == (False, False, True)


def test_the_long_score_is_the_share_of_facts():
    placed = (replace(RED_CIRCLE, place="left"), replace(BLUE_SQUARE, place="right"))
    spec = Spec(placed)  # 2 objects of 4 facts, background, style, nothing else
    assert long_score(spec, detect(render(PAIR))) == 1.0
    green = replace(PAIR, objects=(PAIR.objects[0], replace(PAIR.objects[1], color="green")))
    assert long_score(spec, detect(render(green))) == pytest.approx(10 / 11)
    moved = replace(PAIR, objects=(PAIR.objects[0], replace(PAIR.objects[1], y=56)))
    assert long_score(spec, detect(render(moved))) == pytest.approx(10 / 11)
    alone = replace(PAIR, objects=PAIR.objects[:1])  # a missing object takes its color along
    assert long_score(spec, detect(render(alone))) == pytest.approx(7 / 11)
    extra = replace(PAIR, objects=(*PAIR.objects, Object("star", "cyan", "small", 32, 8)))
    assert long_score(spec, detect(render(extra))) == pytest.approx(10 / 11)
    assert long_score(spec, detect(np.zeros((64, 64, 3), np.uint8))) == 0.0
