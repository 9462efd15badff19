"""The suites: held out, fixed, distinct, and worded so that a reader of the caption can judge."""

import numpy as np
import pytest

from cogrpo_core.shapes.captions import caption
from cogrpo_core.shapes.checker import TASKS, TaskError
from cogrpo_core.shapes.scenes import held_out, sample_scene
from cogrpo_core.shapes.suites import PROMPTS_PER_TASK, SuiteError, suite, task_spec, truth_cases


@pytest.mark.parametrize(("name", "tasks"), [("geneval-shapes", TASKS), ("long-shapes", ("long",))])
def test_prompts_are_held_out_and_can_be_drawn(name, tasks):
    prompts = suite(name)
    rng = np.random.default_rng(0)
    assert [prompt.task for prompt in prompts[::PROMPTS_PER_TASK]] == list(tasks)
    assert len(prompts) == PROMPTS_PER_TASK * len(tasks)
    for prompt in prompts:
        assert held_out(prompt.spec)
        assert prompt.text == caption(prompt.spec)
        sample_scene(prompt.spec, rng)


def test_prompts_of_a_task_are_distinct_and_always_the_same():
    prompts = suite("geneval-shapes")
    assert len({(prompt.task, prompt.text) for prompt in prompts}) == len(prompts)
    again = suite("geneval-shapes", 10)
    assert again == [p for task in TASKS for p in [q for q in prompts if q.task == task][:10]]


def test_more_prompts_than_the_split_has_are_repeated():
    assert len(suite("geneval-shapes", 100)) == 100 * len(TASKS)  # 61 of counting


def test_the_specs_are_of_their_task():
    for prompt in suite("geneval-shapes", 100):
        spec, groups = prompt.spec, prompt.spec.groups
        if prompt.task in ("single_object", "colors"):
            assert [group.count for group in groups] == [1]
        elif prompt.task == "counting":
            assert len(groups) == 1
            assert 2 <= groups[0].count <= 4
        else:
            assert len({group.shape for group in groups}) == 2
            assert len({group.color for group in groups}) == 2
            assert (spec.relation is not None) == (prompt.task == "position")
        if prompt.task in ("colors", "color_attribution"):
            assert all(group.color in prompt.text for group in groups)
        if prompt.task not in ("single_object", "colors"):
            assert (spec.background, spec.style) == ("white", "flat")


def test_truth_cases_follow_their_seed():
    (spec, image), (other, _) = truth_cases("counting", 1, 3)[0], truth_cases("counting", 1, 4)[0]
    again = truth_cases("counting", 1, 3)[0]
    assert spec == again[0] != other
    assert np.array_equal(image, again[1])


@pytest.mark.parametrize(("name", "n"), [("geneval", 60), ("", 1), ("geneval-shapes", 0)])
def test_unusable_suites_are_errors(name, n):
    with pytest.raises(SuiteError):
        suite(name, n)


def test_an_unknown_task_is_an_error():
    with pytest.raises(TaskError, match="counting"):
        task_spec("poetry", np.random.default_rng(0))
