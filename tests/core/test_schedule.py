"""Schedules: the presets against the reference's formulas, given values, and clear refusals."""

import math

import pytest
import torch

from cogrpo_core.schedule import (
    ACTION_COLUMNS,
    ScheduleError,
    build_schedule,
    cosine_power,
    meissonic,
    paper_table_1,
    used_actions,
)


def test_meissonic_is_the_references_schedule():
    table = meissonic(48, guidance_scale=9.0)
    t = torch.arange(48)
    assert torch.allclose(table[:, 0], torch.cos(math.pi / 2 * (t + 1) / 48), atol=1e-6)
    assert (table[:, 1] == 1).all()
    assert torch.equal(table[:, 2], torch.linspace(2, 0, 48))
    assert (table[:, 3] == 9).all()


def test_the_paper_prints_another_remask_temperature():
    t, num_steps = torch.arange(16), 16
    table = paper_table_1(num_steps)
    assert torch.allclose(table[:, 2], 2.0 ** ((num_steps - t) / num_steps))
    assert torch.equal(table[:, [0, 1, 3]], meissonic(num_steps)[:, [0, 1, 3]])


def test_gamma_is_a_power_of_the_ratio():
    assert torch.equal(cosine_power(16, gamma=1.0), meissonic(16))
    table = build_schedule("cosine-power:2", 16).actions_T4
    assert torch.allclose(table[:, 0], meissonic(16)[:, 0] ** 2)
    assert build_schedule("cosine-power:2", 16).name == "cosine-power:2"


@pytest.mark.parametrize("num_steps", [1, 2, 7, 256])
@pytest.mark.parametrize("name", ["meissonic", "paper-table-1", "cosine-power"])
def test_presets_exist_for_every_number_of_steps(name, num_steps):
    schedule = build_schedule(name, num_steps)
    assert schedule.num_steps == num_steps
    assert schedule.actions_T4.shape == (num_steps, 4)
    assert schedule.actions_T4[-1, 0] == 0


def test_a_guidance_scale_below_one_turns_a_presets_guidance_off():
    assert (build_schedule("meissonic", 4, guidance_scale=0.0).actions_T4[:, 3] == 1).all()


def test_given_values_take_the_place_of_a_presets():
    schedule = build_schedule(
        {"base": "cosine-power:1.5", "sample_temperature": 0.7, "guidance_scale": [0, 1, 2.5]}, 3
    )
    assert schedule.name == "given"
    assert schedule.actions_T4[:, 3].tolist() == [0, 1, 2.5]
    assert torch.allclose(schedule.actions_T4[:, 1], torch.tensor(0.7))
    assert torch.equal(schedule.actions_T4[:, 0], cosine_power(3, 1.5)[:, 0])


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ("linear", "schedule", "unknown schedule"),
        ("cosine-power:0", "schedule", "gamma"),
        ("cosine-power:nan", "schedule", "unknown schedule"),
        (7, "schedule", "not int"),
        ({"temperature": 1}, "schedule", "unknown schedule key"),
        ({"base": "given"}, "schedule", "unknown schedule"),
        ({"base": 3}, "schedule.base", "preset's name"),
        ({"remask_ratio": 1.5}, "schedule.remask_ratio", "between 0 and 1"),
        ({"remask_ratio": [0.5, 0.5]}, "schedule.remask_ratio", "2 values"),
        ({"remask_ratio": [0.5] * 10**6}, "schedule.remask_ratio", "1000000 values"),
        ({"sample_temperature": 0}, "schedule.sample_temperature", "between 0.001"),
        ({"sample_temperature": float("nan")}, "schedule.sample_temperature", "between"),
        ({"remask_temperature": -1}, "schedule.remask_temperature", "step 0 is -1"),
        ({"remask_temperature": float("inf")}, "schedule.remask_temperature", "finite"),
        ({"guidance_scale": 10**400}, "schedule.guidance_scale", "finite"),
        ({"guidance_scale": "9"}, "schedule.guidance_scale", "numbers"),
        ({"guidance_scale": [1, True, 1]}, "schedule.guidance_scale", "numbers"),
        (torch.ones(3, 3), "schedule", r"\[T, 4\]"),
        (torch.ones(4, 4), "schedule", "4 rows for 3 steps"),
        (torch.full((3, 4), torch.nan), "schedule.remask_ratio", "between"),
    ],
)
def test_a_schedule_that_cannot_be_used_is_refused(spec, field, message):
    with pytest.raises(ScheduleError, match=message) as caught:
        build_schedule(spec, 3)
    assert caught.value.field == field


@pytest.mark.parametrize("num_steps", [0, -1, 257, 10**9, 2.0, True, None])
def test_a_number_of_steps_that_cannot_be_is_refused(num_steps):
    with pytest.raises(ScheduleError, match="1 to 256"):
        build_schedule("meissonic", num_steps)


def test_the_last_step_uses_neither_ratio_nor_remask_temperature():
    used = used_actions(torch.tensor([0, 3, 4]), torch.tensor([5, 5, 5]))
    unused = {ACTION_COLUMNS[c] for c in (~used[2]).nonzero()[:, 0].tolist()}
    assert unused == {"remask_ratio", "remask_temperature"}
    assert used[:2].all()
