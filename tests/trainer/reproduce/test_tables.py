"""Items, rows and page of the reproduction, on made-up scores."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from typer.testing import CliRunner

from cogrpo_client.cli import build_app
from cogrpo_core.rewards.quality import style_of
from cogrpo_trainer.measure import gains, held_out_prompts, mean, measure_world, scorers
from cogrpo_trainer.reproduce import claims
from cogrpo_trainer.reproduce.execute import Budget, Laboratory
from cogrpo_trainer.reproduce.page import write_page
from cogrpo_trainer.reproduce.plan import (
    BASE,
    BEST_CONSTANT,
    BEST_STATIC,
    HORIZON,
    ITEMS,
    RUNS,
    SCHEDULE_ONLY,
    WORLD,
    Measure,
    comparable,
    limited,
    trained,
)
from cogrpo_trainer.reproduce.tables import rows_of

PROMPTS = held_out_prompts(70)


def fake(wanted: Measure) -> dict[str, np.ndarray]:
    """Better by 0.1 a cycle, the noise of a prompt shared by all measures."""
    rng = np.random.default_rng(0)
    names = ("shapes-align", "shapes-quality", "shapes-judge", "checker")
    noise = {name: rng.normal(size=len(PROMPTS)) for name in names}
    return {name: noise[name] + 0.1 * wanted.cycle + 0.01 * wanted.seed for name in names}


def test_every_measure_has_a_run_and_a_file_of_its_own():
    wanted = {m for item in ITEMS.values() for rows in item.rows.values() for m in rows}
    assert len({m.key for m in wanted}) == len(wanted)
    for each in wanted:
        assert each.model in (BASE, WORLD) or each.seed < RUNS[each.model].seeds


def test_every_paper_figure_belongs_to_a_row():
    for item in ITEMS.values():
        assert item.paper.keys() <= item.rows.keys(), item.name


@pytest.mark.parametrize("name", list(ITEMS))
def test_rows_have_means_and_paired_gains(name):
    item = limited(ITEMS[name], 2)
    rows = rows_of(item, fake, PROMPTS)
    assert [row["label"] for row in rows] == list(item.rows)
    for row, measures in zip(rows, item.rows.values(), strict=True):
        first = next(iter(item.rows.values()))
        expected = np.mean([0.1 * m.cycle + 0.01 * m.seed for m in measures]) - np.mean(
            [0.1 * m.cycle + 0.01 * m.seed for m in first]
        )
        for cell in row["columns"].values():
            assert cell["gain"]["value"] == pytest.approx(expected, abs=1e-9)
            assert cell["gain"]["high"] - cell["gain"]["low"] < 1e-9  # the noise is shared
            assert cell["mean"]["high"] - cell["mean"]["low"] > 0.1
            assert len(cell["by_seed"]) == len(measures)


def test_a_claim_is_paired_and_says_how_sure_it_is():
    rows = {(row["claim"], row["column"]): row for row in claims.tested(fake, PROMPTS)}
    sure = rows["Naive GRPO is above the base", "checker"]
    assert (sure["verdict"], sure["seeds"]) == ("yes", 3)
    assert sure["value"] == pytest.approx(0.31) and sure["high"] - sure["low"] < 1e-9
    undecided = rows["Co-GRPO is above Naive GRPO", "checker"]
    assert undecided["verdict"] == "open"
    less = rows["the first of 3 cycles has more than half of the gain", "shapes-align"]
    assert less["verdict"] == "no" and less["value"] == pytest.approx(0.11 - 0.31 / 2)
    # What was not measured is not spoken of; a seed that is missing is not counted.
    some = claims.tested(lambda m: None if m.model == "joint" or m.seed == 2 else fake(m), PROMPTS)
    assert not any("joint" in row["claim"] for row in some)
    assert {row["seeds"] for row in some} == {2}


def test_rows_are_compared_over_the_seeds_that_all_of_them_have():
    item = comparable(ITEMS["table-5a"])  # two seeds of some runs, three of others
    assert {len(rows) for label, rows in item.rows.items() if label != "base"} == {2}
    assert item.rows["base"] == [Measure()]
    assert comparable(ITEMS["table-3"]) == ITEMS["table-3"]
    assert comparable(ITEMS["table-2"]) == ITEMS["table-2"]  # nothing is trained
    rows = {(row["claim"], row["column"]): row for row in claims.tested(fake, PROMPTS)}
    equal = rows["Table 5a: + re-mask ratio is above the row before", "shapes-align"]
    assert (equal["seeds"], equal["verdict"]) == (2, "open")
    assert equal["value"] == pytest.approx(0)  # a third seed of one alone would be above


def test_styles_and_suites_are_their_own_columns():
    rows = rows_of(ITEMS["table-3"], fake, PROMPTS)
    counts = {name: cell["mean"]["n"] for name, cell in rows[0]["columns"].items()}
    flat = sum(style_of(prompt.text) == "flat" for prompt in PROMPTS)
    assert counts["shapes-quality/flat"] == flat
    assert (
        sum(counts[f"shapes-quality/{s}"] for s in ("flat", "cartoon", "shaded", "striped")) == 70
    )
    zero_shot = rows_of(ITEMS["table-4"], fake, PROMPTS)
    assert zero_shot[0]["columns"]["geneval"]["mean"]["n"] == 60
    assert zero_shot[0]["columns"]["long"]["mean"]["n"] == 10


def test_the_page_shows_all_that_was_found(tmp_path):
    results = {
        name: {
            "prompts": 70,
            "budget": {"scale": 0.5},
            "command": "cogrpo reproduce all",
            "commit": "abc",
            "rows": rows_of(item, fake, PROMPTS),
        }
        for name, item in ITEMS.items()
    }
    results["table-5b"]["seconds"] = dict.fromkeys(ITEMS["table-5b"].rows, 0.1)
    checked = claims.tested(fake, PROMPTS)
    write_page(results, checked, tmp_path / "page.md", tmp_path / "images")
    text = (tmp_path / "page.md").read_text()
    for name, item in ITEMS.items():
        assert f"## {name}: {item.title}" in text
        for label, value in item.paper.items():
            assert label in text and value in text
    assert "with 0.5 of the iterations" in text
    assert "| 12 | 1 | 12.0 | 1.0 |" in text  # made up: as good with one step as with any number
    assert all(f"| {claim['claim']} | {claim['column']} |" in text for claim in checked)
    assert (tmp_path / "images" / "reproduction-steps.png").stat().st_size > 5000


def test_runs_differ_only_in_what_their_name_says(tmp_path):
    laboratory = Laboratory(tmp_path, Budget())
    base = laboratory.config("co-grpo", 0)
    assert laboratory.config("co-grpo", 1).seed == 1
    phases = (base.model_phase, base.schedule_phase)
    pictures = base.cycles * sum(phase.iterations * phase.batch_size for phase in phases)
    modes = {"naive": "model-only", "joint": "joint"}
    for run, mode in modes.items():
        alone = laboratory.config(run, 0)
        assert alone.mode == mode
        batch = alone.model_phase.batch_size
        # The same budget, but for a part of an iteration.
        assert abs(alone.iterations * batch - pictures) <= base.cycles * batch
    assert laboratory.config(SCHEDULE_ONLY, 0).mode == "schedule-only"
    only = laboratory.config("actions-2", 0)
    assert only.schedule_phase.actions == ("remask_ratio", "remask_temperature")
    assert only.model_phase == base.model_phase
    small = Laboratory(tmp_path, Budget(scale=0.5)).config("co-grpo", 0)
    assert small.schedule_phase.iterations == round(base.schedule_phase.iterations / 2)
    assert small.model_phase.iterations == round(base.model_phase.iterations / 2)
    sampled = laboratory.config("naive-third", 0)
    assert sampled.model_phase.step_share * HORIZON == pytest.approx(1)
    assert sampled.model_phase.trained_steps(HORIZON) == list(range(HORIZON))
    assert sampled.iterations == laboratory.config("naive", 0).iterations


def test_what_other_settings_made_is_known_by_its_digest(tmp_path):
    laboratory = Laboratory(tmp_path, Budget())
    wanted = [Measure("co-grpo"), Measure("co-grpo", 1), Measure("naive"), Measure("sigma-0.4")]
    wanted += [Measure(SCHEDULE_ONLY), Measure(schedule=BEST_STATIC)]
    digests = [laboratory.settings(each) for each in wanted]
    assert len(set(digests)) == 5 and digests[5] == digests[4]
    assert laboratory.settings(Measure("co-grpo", 0, 2, "learned", 8)) == digests[0]
    shorter = Laboratory(tmp_path, Budget(scale=0.5))
    assert all(shorter.settings(each) != digest for each, digest in zip(wanted, digests))
    assert laboratory.settings(Measure(steps=8)) is None
    assert laboratory.settings(Measure(schedule=BEST_CONSTANT)) is None


def test_the_worlds_own_pictures_are_what_was_asked_for():
    prompts = held_out_prompts(14)
    found = measure_world(scorers(["shapes-align"], 60.0), prompts, seed=1)
    assert (found["checker"] == 1).all()
    assert found["shapes-align"].shape == (len(prompts),)
    assert found["shapes-align"].mean() > 0  # true pairs score about 1, false ones -1


def test_means_leave_out_what_is_missing():
    found = mean(np.array([1.0, np.nan, 3.0]))
    assert (found.value, found.n) == (2.0, 2)
    assert np.isnan(mean(np.array([np.nan])).value)
    paired = gains({"a": np.array([2.0, 3.0])}, {"a": np.array([1.0, 1.0])})
    assert paired["a"].value == 1.5


def test_what_is_measured_can_be_tabulated_before_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("cogrpo_trainer.reproduce.cli.restart_with_allocator", lambda: None)
    prompts = held_out_prompts(7)
    laboratory = Laboratory(tmp_path, Budget(prompts=7))
    of_two = [trained(run, seed) for run in ("co-grpo", "joint") for seed in (1, 2)]
    laboratory.measure_file(Measure()).parent.mkdir()
    for each in (Measure(), *of_two):
        scores = {name: fake(each)[name][: len(prompts)].tolist() for name in fake(each)}
        saved = {"budget": asdict(laboratory.budget), "settings": laboratory.settings(each)}
        laboratory.measure_file(each).write_text(json.dumps(saved | {"scores": scores}))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table-3.json").write_text("{}")  # of another preset
    page = tmp_path / "page.md"
    options = ["--measured", "--prompts", "7", "--out", str(tmp_path), "--page", str(page)]
    result = CliRunner().invoke(build_app("reproduce"), ["reproduce", "all", *options])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert "| joint (2 seeds) |" in text and "cycles (2 seeds)" not in text
    assert "Not measured yet: table-2, table-3," in text


def test_what_was_timed_together_stays(tmp_path, monkeypatch):
    laboratory = Laboratory(tmp_path, Budget(prompts=7))
    steps = [Measure(steps=1), Measure(steps=4)]
    taken = laboratory.seconds(steps, pictures=1)
    assert all(each > 0 for each in taken)
    monkeypatch.setattr("cogrpo_trainer.reproduce.execute.CoGRPOPipeline", None)  # not needed
    assert laboratory.seconds(steps) == taken
    with pytest.raises(AttributeError):  # another set is timed anew, as a whole
        laboratory.seconds([*steps, Measure(steps=2)])


def test_an_unknown_item_is_one_line(monkeypatch):
    monkeypatch.setattr("cogrpo_trainer.reproduce.cli.restart_with_allocator", lambda: None)
    result = CliRunner().invoke(build_app("reproduce"), ["reproduce", "table-9"])
    assert "unknown item 'table-9'" in str(result.exception)
