"""GenEval's rules on detections that are made up: the six tasks, and where each turns."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from cogrpo_trainer.suites.geneval_rules import (
    TASKS,
    Detection,
    Limits,
    Spec,
    counted,
    iou,
    judge,
    relations,
)
from tests.trainer.suites.conftest import PROMPTS

SPECS: dict[str, Spec] = {
    spec.tag: spec
    for spec in map(
        Spec.model_validate_json, (PROMPTS / "evaluation_metadata.jsonl").read_text().splitlines()
    )
}


def found(name: str, confidence: float = 0.95, x: float = 100, y: float = 100, size: float = 40):
    """An object of `size` pixels about (x, y)."""
    half = size / 2
    return Detection(name, confidence, (x - half, y - half, x + half, y + half))


def painted(**colors: str):
    """A color classifier that knows the colors of classes, or of objects by their left side."""

    def color_of(name: str, some: Sequence[Detection]) -> list[str]:
        return [colors.get(name, colors.get(f"at{one.box[0]:g}", "white")) for one in some]

    return color_of


def never(name: str, some: Sequence[Detection]) -> list[str]:
    raise AssertionError("no color was asked for")


def verdict(task: str, *objects: Detection, color_of=never) -> tuple[bool, str]:
    found = judge(SPECS[task], objects, color_of)
    return found.correct, found.reason


def test_the_sample_has_all_tasks() -> None:
    assert tuple(SPECS) == TASKS


def test_single_object() -> None:
    assert verdict("single_object", found("bench")) == (True, "")
    assert verdict("single_object", found("bench"), found("bench", x=300), found("dog"))[0]
    assert verdict("single_object", found("chair")) == (False, "expected bench>=1, found 0")
    assert not verdict("single_object")[0]
    assert verdict("single_object", found("bench", 0.3001))[0]
    assert not verdict("single_object", found("bench", 0.3))[0]  # at the threshold is below it


def test_two_objects() -> None:
    assert verdict("two_object", found("dog"), found("cup"))[0]
    assert verdict("two_object", found("dog")) == (False, "expected cup>=1, found 0")
    assert verdict("two_object")[1] == "expected cup>=1, found 0\nexpected dog>=1, found 0"


@pytest.mark.parametrize(("number", "correct"), [(1, False), (2, True), (3, False), (7, False)])
def test_counting_is_exact(number: int, correct: bool) -> None:
    clocks = [found("clock", 0.99, x=100 * i) for i in range(number)]
    right, reason = verdict("counting", *clocks, found("dog"))
    assert right == correct
    assert reason == (
        "" if correct else f"expected clock{'>=2' if number < 2 else '<3'}, found {number}"
    )


def test_counting_asks_for_more_confidence() -> None:
    two = [found("clock", 0.95), found("clock", 0.91, x=200)]
    assert verdict("counting", *two, found("clock", 0.9, x=300))[0]
    assert not verdict("counting", *two, found("clock", 0.901, x=300))[0]
    assert not verdict("counting", two[0], found("clock", 0.89, x=200))[0]


def test_colors() -> None:
    car = found("car")
    assert verdict("colors", car, color_of=painted(car="red"))[0]
    assert verdict("colors", car, color_of=painted(car="orange")) == (
        False,
        "expected red car>=1, found 1 orange",
    )
    # The surest object alone is asked.
    red, blue = found("car", 0.9, x=120), found("car", 0.8, x=320)
    assert verdict("colors", blue, red, color_of=painted(at100="red", at300="blue"))[0]
    assert not verdict("colors", blue, red, color_of=painted(at100="blue", at300="red"))[0]
    assert not verdict("colors", found("truck"), color_of=painted(truck="red"))[0]


def test_color_attribution() -> None:
    both = found("cup"), found("car")
    assert verdict("color_attr", *both, color_of=painted(cup="red", car="blue"))[0]
    right, reason = verdict("color_attr", *both, color_of=painted(cup="blue", car="red"))
    assert not right and reason == (
        "expected red cup>=1, found 1 blue\nexpected blue car>=1, found 1 red"
    )
    assert not verdict("color_attr", both[0], color_of=painted(cup="red", car="blue"))[0]


def test_position() -> None:
    dog = found("dog", x=200)
    assert verdict("position", dog, found("cup", x=100))[0]
    assert verdict("position", dog, found("cup", x=300)) == (
        False,
        "expected cup left of target, found right of target",
    )
    assert not verdict("position", dog, found("cup", x=200, y=20))[0]
    assert verdict("position", found("cup")) == (
        False,
        "expected dog>=1, found 0\nno target for cup to be left of",
    )
    assert verdict("position", dog)[1] == "expected cup>=1, found 0"
    # The surest of each class are compared.
    assert verdict("position", dog, found("cup", 0.9, x=100), found("cup", 0.5, x=300))[0]
    assert not verdict("position", dog, found("cup", 0.5, x=100), found("cup", 0.9, x=300))[0]


@pytest.mark.parametrize(
    ("x", "y", "sides"),
    [
        (-100, 0, {"left of"}),
        (100, 0, {"right of"}),
        (0, -100, {"above"}),
        (0, 100, {"below"}),
        (100, 100, {"right of", "below"}),
        (-100, -80, {"left of", "above"}),
        (100, 50, {"right of"}),
        (0, 0, set()),
        (8, 0, set()),  # a tenth of the sum of two sizes of 40 is 8
        (8.0005, 0, set()),
        (9, 0, set()),  # clear of it, yet by a small part of the offset
        (16.5, 0, {"right of"}),
        (15.5, 0, set()),
    ],
)
def test_where_relations_turn(x: float, y: float, sides: set[str]) -> None:
    assert relations(found("cup", x=200 + x, y=200 + y), found("dog", x=200, y=200)) == sides


def test_large_objects_need_more_room() -> None:
    assert relations(found("a", x=140, size=40), found("b", x=100, size=40)) == {"right of"}
    assert relations(found("a", x=140, size=200), found("b", x=100, size=200)) == set()


def test_duplicates_count_unless_overlap_is_limited() -> None:
    """As published, overlap is off: two detections of one clock are two clocks."""
    twice = [found("clock", 0.99), found("clock", 0.95, x=101), found("clock", 0.92, x=300)]
    assert [one.confidence for one in counted(twice, True)["clock"]] == [0.99, 0.95, 0.92]
    assert not judge(SPECS["counting"], twice, never).correct
    limits = Limits(overlap=0.9)
    assert [one.confidence for one in counted(twice, True, limits)["clock"]] == [0.99, 0.92]
    assert judge(SPECS["counting"], twice, never, limits).correct
    # Objects of two classes may be at one place.
    assert len(counted([found("cup"), found("bowl")], False, limits)) == 2


def test_the_surest_sixteen_of_a_class_count() -> None:
    many = [found("clock", 0.91 + 0.001 * i, x=100 * i) for i in range(20)]
    kept = counted(many, True)["clock"]
    assert len(kept) == 16
    surest = sorted((one.confidence for one in many), reverse=True)[:16]
    assert [one.confidence for one in kept] == surest


def test_overlap_of_boxes() -> None:
    one = Detection("a", 1, (0, 0, 9, 9))
    assert iou(one, one) == 1
    assert iou(one, Detection("a", 1, (5, 0, 14, 9))) == pytest.approx(50 / 150)
    assert iou(one, Detection("a", 1, (50, 50, 59, 59))) == 0


def test_several_of_a_color() -> None:
    wanted = {"class": "cup", "count": 2, "color": "red"}
    spec = Spec.model_validate({"tag": "colors", "prompt": "two red cups", "include": [wanted]})
    cups = [found("cup", x=120), found("cup", 0.9, x=320), found("cup", 0.8, x=520)]
    assert judge(spec, cups, painted(at100="red", at300="red", at500="blue")).correct
    found_ = judge(spec, cups, painted(at100="red", at300="blue", at500="red"))
    assert found_.reason == "expected red cup>=2, found 1 red, 1 blue"


def test_a_line_is_checked_and_comes_back_as_it_was() -> None:
    for line in (PROMPTS / "evaluation_metadata.jsonl").read_text().splitlines():
        spec = Spec.model_validate_json(line)
        again = json.loads(spec.model_dump_json(by_alias=True, exclude_defaults=True))
        assert again == json.loads(line)
    cup: dict[str, object] = {"class": "cup", "count": 1}
    changes: tuple[dict[str, object], ...] = (
        {"tag": "smell"},
        {"prompt": ""},
        {"include": []},
        {"include": [{"class": "cup"}]},
        {"include": [cup | {"count": 0}]},
        {"include": [cup | {"position": ["left of", 0]}]},
        {"include": [cup, cup | {"position": ["near", 0]}]},
        {"more": 1},
    )
    base: dict[str, object] = {"tag": "single_object", "prompt": "a cup", "include": [cup]}
    Spec.model_validate(base)
    for change in changes:
        with pytest.raises(ValidationError):
            Spec.model_validate(base | change)


def test_masks_are_carried_along() -> None:
    mask = np.ones((4, 4), bool)
    one = Detection("cup", 0.9, (0, 0, 4, 4), mask)
    assert counted([one], False)["cup"][0].mask is mask
