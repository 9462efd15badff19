"""The composite: weighs what works, masks and reports what does not, and never hangs."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from cogrpo_core.rewards.composite import Composite
from cogrpo_core.rewards.reward import Images, RewardError

IMAGES = np.zeros((3, 8, 8, 3), np.uint8)
PROMPTS = ["a", "b", "c"]


class Fake:
    """A reward that does what it is told."""

    def __init__(self, name: str, act: Callable[[Images, Sequence[str]], object]) -> None:
        self.name = name
        self.version = "1"
        self.act = act
        self.calls = 0

    def __call__(self, images: Images, prompts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        return self.act(images, prompts)  # type: ignore[return-value]


def constant(name: str, *values: float) -> Fake:
    return Fake(name, lambda images, prompts: np.array(values, np.float32))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds a reward until it is set; no thread is left behind."""
    event = threading.Event()
    yield event
    event.set()


def fail(images: Images, prompts: Sequence[str]) -> object:
    raise RuntimeError("the model\nis gone")


def test_total_is_the_weighted_sum():
    composite = Composite([constant("x", 1, 2, 3), constant("y", 1, 0, -1)], {"x": 2, "y": -1})
    scores = composite.score(IMAGES, PROMPTS)
    assert scores.by_reward["x"].tolist() == [1, 2, 3]
    assert scores.total.tolist() == [1, 4, 7]
    assert scores.total.dtype == np.float32
    assert scores.failures == () and scores.failed == 0
    assert composite.versions == {"x": "1", "y": "1"}


def test_reward_that_raises_is_masked_and_said_in_one_line():
    composite = Composite([constant("x", 1, 2, 3), Fake("bad", fail)], {"x": 1, "bad": 1})
    scores = composite.score(IMAGES, PROMPTS)
    assert np.isnan(scores.by_reward["bad"]).all()
    assert scores.by_reward["x"].tolist() == [1, 2, 3]
    assert np.isnan(scores.total).all()
    (failure,) = scores.failures
    assert failure.reward == "bad" and failure.count == 3
    assert failure.message == (
        "reward bad raised RuntimeError: the model is gone: its scores are masked"
    )
    assert scores.failed == 3


def test_failed_reward_without_weight_does_not_spoil_the_total():
    composite = Composite([constant("x", 1, 2, 3), Fake("bad", fail)], {"x": 1, "bad": 0})
    assert composite.score(IMAGES, PROMPTS).total.tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_masked_alone(value: float):
    composite = Composite([constant("x", 1, value, 3)], {"x": 1})
    scores = composite.score(IMAGES, PROMPTS)
    assert np.isnan(scores.by_reward["x"]).tolist() == [False, True, False]
    (failure,) = scores.failures
    assert failure.count == 1 and "1 of 3 scores that are not finite" in failure.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.zeros((3, 1), np.float32), r"shape \[3, 1\], not \[3\]"),
        (np.float32(1), r"shape \[\], not \[3\]"),
        (None, "no array of numbers|shape"),
        (["good", "bad", "ugly"], "no array of numbers"),
    ],
)
def test_answer_that_is_no_row_of_scores_is_masked(answer: object, words: str):
    composite = Composite([Fake("odd", lambda images, prompts: answer)], {"odd": 1})
    scores = composite.score(IMAGES, PROMPTS)
    assert np.isnan(scores.by_reward["odd"]).all()
    (failure,) = scores.failures
    assert failure.count == 3 and "\n" not in failure.message
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(failure.message)


def test_reward_that_hangs_is_masked_in_time_and_not_called_again(gate: threading.Event):
    def wait(images: Images, prompts: Sequence[str]) -> object:
        gate.wait(60)
        return np.ones(len(images), np.float32)

    slow = Fake("slow", wait)
    composite = Composite([slow, constant("x", 1, 2, 3)], {"slow": 1, "x": 1}, timeout_s=0.2)
    threads = threading.active_count()
    first = composite.score(IMAGES, PROMPTS)
    assert np.isnan(first.by_reward["slow"]).all()
    assert first.by_reward["x"].tolist() == [1, 2, 3]
    assert first.failures[0].message == (
        "reward slow gave no scores within 0.2 s: its scores are masked"
    )
    for _ in range(3):
        again = composite.score(IMAGES, PROMPTS)
        assert "still hangs in an earlier call" in again.failures[0].message
        assert np.isnan(again.by_reward["slow"]).all()
    assert slow.calls == 1
    assert threading.active_count() <= threads + 1


def test_reward_that_came_back_is_called_again_and_its_late_answer_is_dropped(
    gate: threading.Event,
):
    answers = iter([7.0, 8.0])

    def act(images: Images, prompts: Sequence[str]) -> object:
        value = next(answers)
        if value == 7.0:
            gate.wait(60)
        return np.full(len(images), value, np.float32)

    composite = Composite([Fake("slow", act)], {"slow": 1}, timeout_s=0.2)
    assert composite.score(IMAGES, PROMPTS).failed == 3
    gate.set()
    deadline = time.monotonic() + 30
    while composite.score(IMAGES, PROMPTS).by_reward["slow"].tolist() != [8, 8, 8]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("names", "weights", "words"),
    [
        (["x"], {"x": 1, "y": 1}, r"same names; not so: \['y'\]"),
        (["x", "y"], {"x": 1}, r"same names; not so: \['y'\]"),
        (["x", "x"], {"x": 1}, "two rewards are named x"),
        (["x"], {"x": float("nan")}, "weight of x is nan"),
        (["x"], {"x": 0}, "all weights are 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    names: list[str], weights: dict[str, float], words: str
):
    with pytest.raises(RewardError, match=words):
        Composite([constant(name, 1) for name in names], weights)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_timeout_must_be_a_bound(timeout: float):
    with pytest.raises(RewardError, match="timeout_s"):
        Composite([constant("x", 1)], {"x": 1}, timeout_s=timeout)


def test_pictures_and_prompts_must_go_together():
    composite = Composite([constant("x", 1, 2)], {"x": 1})
    with pytest.raises(RewardError, match="3 pictures for 2 prompts"):
        composite.score(IMAGES, PROMPTS[:2])


def test_reward_may_not_change_the_result_afterwards():
    own = np.ones(3, np.float32)
    scores = Composite([Fake("x", lambda i, p: own)], {"x": 1}).score(IMAGES, PROMPTS)
    own[:] = 5
    assert scores.by_reward["x"].tolist() == [1, 1, 1]
