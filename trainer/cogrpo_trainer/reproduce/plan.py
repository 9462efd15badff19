"""What is trained and measured for each table of the paper: runs, measures, items.

Runs are shared between tables: Table 5c is the trace of Table 3's runs, Table 5b and Figure 5
measure their checkpoints. `execute.py` carries out what an item needs, `tables.py` makes its rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

HORIZON = 3
"""T of training; it stands for the paper's 48. There the base has room to improve, and a rollout's
gradient has signal (docs/training.md)."""
STEP_COUNTS = (1, 2, 3, 4)
"""They stand for the paper's 16, 32, 48 and 64: T/3, 2T/3, T and 4T/3."""
MORE_STEPS = (8, 12)
"""At these the base is at its best; the paper has no such rows."""
ALL_STEPS = (*STEP_COUNTS, *MORE_STEPS)
CYCLES = 3
GAMMAS = (1.0, 1.5, 2.0)
BASE = "base"
WORLD = "world"
UNTRAINED = (BASE, WORLD)
BEST_CONSTANT = "best-constant"
BEST_STATIC = "best-static"
SCHEDULE_ONLY = "schedule-only"

ACTION_ORDER = ("remask_ratio", "remask_temperature", "sample_temperature", "guidance_scale")
"""The order in which Table 5a adds them."""
ACTION_CYCLES = 2
"""After which Table 5a compares; the third cycle adds little (Table 5c) and costs as much."""

RATIO_FORMS = ("geometric_mean", "product", "token")


@dataclass(frozen=True)
class Run:
    """A training run: the `shapes` preset with other settings, for several seeds."""

    name: str
    seeds: int
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def _runs() -> Iterable[Run]:
    yield Run("co-grpo", 3)
    yield Run("naive", 3, {"mode": "model-only"})
    yield Run("joint", 3, {"mode": "joint"})
    for name, share in (("all", 1.0), ("third", 1 / 3)):
        steps = {"steps": [], "step_share": share}
        yield Run(f"naive-{name}", 2, {"mode": "model-only", "model_phase": steps})
    for count in (1, 2, 3):
        chosen = ACTION_ORDER[:count]
        yield Run(f"actions-{count}", 2, {"schedule_phase": {"actions": list(chosen)}})
    for form in RATIO_FORMS:
        # At a rollout's first optimiser step all ratios are 1, and the forms hardly differ.
        phase = {"ratio": form, "updates": 2}
        yield Run(f"ratio-{form}", 2, {"mode": "model-only", "model_phase": phase})
    for sigma in (0.4, 1.2):
        yield Run(f"sigma-{sigma}", 2, {"schedule_phase": {"sigma": sigma}})
    alone = {"mode": "schedule-only", "schedule_phase": {"iterations": 30}}
    yield Run(SCHEDULE_ONLY, 2, alone)


RUNS: dict[str, Run] = {run.name: run for run in _runs()}


@dataclass(frozen=True, order=True)
class Measure:
    """Pictures of the held-out prompts by one model with one schedule, scored by everything."""

    model: str = BASE
    """`base`, a run's name, or `world` for scenes as the world itself draws them."""
    seed: int = 0
    """Of the run."""
    cycle: int = 0
    """The number of cycles trained."""
    schedule: str = "meissonic"
    """A preset's name, `learned`, or one found by search."""
    steps: int = HORIZON

    @property
    def key(self) -> str:
        """A file name."""
        name = self.schedule.replace(":", "-")
        return f"{self.model}-s{self.seed}-c{self.cycle}-{name}-t{self.steps}"


def trained(run: str, seed: int, cycle: int = CYCLES, steps: int = HORIZON) -> Measure:
    """The measure of a run's model as it is meant to be used."""
    return Measure(run, seed, cycle, "learned", steps)


def of_seeds(run: str, cycle: int = CYCLES, steps: int = HORIZON) -> list[Measure]:
    """The same of all seeds of a run."""
    return [trained(run, seed, cycle, steps) for seed in range(RUNS[run].seeds)]


@dataclass(frozen=True)
class Item:
    """A table or figure: its title, the paper's rows, and the measures behind ours."""

    name: str
    title: str
    rows: dict[str, list[Measure]]
    """The label of each row, and its measures (several seeds are pooled)."""
    paper: dict[str, str]
    """The paper's figures, by row."""
    columns: tuple[str, ...] = ("shapes-align", "shapes-quality")


BASE_AT_T = [Measure()]
MAIN = {
    "base": BASE_AT_T,
    "best constant schedule": [Measure(schedule=BEST_CONSTANT)],
    "Naive GRPO": of_seeds("naive"),
    "Co-GRPO": of_seeds("co-grpo"),
    "the world's own pictures": [Measure(WORLD)],
}


def _gamma_rows() -> dict[str, list[Measure]]:
    return {
        f"gamma {gamma}, {steps} steps": [Measure(schedule=f"cosine-power:{gamma}", steps=steps)]
        for steps in (STEP_COUNTS[1], HORIZON)
        for gamma in GAMMAS
    }


def _step_rows() -> dict[str, list[Measure]]:
    rows: dict[str, list[Measure]] = {}
    for steps in ALL_STEPS:
        rows[f"base, {steps} steps"] = [Measure(steps=steps)]
        rows[f"Co-GRPO, {steps} steps"] = of_seeds("co-grpo", steps=steps)
    return rows


FEW_STEPS = STEP_COUNTS[:2]


def _few_step_rows() -> dict[str, list[Measure]]:
    rows: dict[str, list[Measure]] = {}
    for steps in FEW_STEPS:
        rows[f"base, {steps} steps"] = [Measure(steps=steps)]
        rows[f"Naive GRPO, {steps} steps"] = of_seeds("naive", steps=steps)
        rows[f"Co-GRPO, {steps} steps"] = of_seeds("co-grpo", steps=steps)
    return rows


ITEMS: dict[str, Item] = {
    item.name: item
    for item in (
        Item(
            "table-2",
            "The exponent of the masking schedule",
            _gamma_rows(),
            dict(
                zip(
                    _gamma_rows(),
                    ("0.660", "0.872", "0.865", "0.918", "0.957", "0.937"),
                    strict=True,
                )
            ),
        ),
        Item(
            "table-3",
            "The rewards that were trained on",
            MAIN,
            {
                "base": "ImageReward 0.942, HPSv2 28.83",
                "Naive GRPO": "ImageReward 1.014 (Table 5a)",
                "Co-GRPO": "ImageReward 1.122, HPSv2 29.37",
            },
        ),
        Item(
            "table-4",
            "Zero-shot: the exact checker",
            MAIN | {f"base, {MORE_STEPS[-1]} steps": [Measure(steps=MORE_STEPS[-1])]},
            {"base": "GenEval 0.47, DPG 64.57", "Co-GRPO": "GenEval 0.55, DPG 70.10"},
            ("geneval", "long"),
        ),
        Item(
            "table-5a",
            f"Which actions the schedule may move, after {ACTION_CYCLES} cycles",
            {
                "base": BASE_AT_T,
                "model only": of_seeds("naive", ACTION_CYCLES),
                "+ re-mask ratio": of_seeds("actions-1", ACTION_CYCLES),
                "+ re-mask temperature": of_seeds("actions-2", ACTION_CYCLES),
                "+ sampling temperature": of_seeds("actions-3", ACTION_CYCLES),
                "+ guidance scale": of_seeds("co-grpo", ACTION_CYCLES),
            },
            {
                "base": "0.942",
                "model only": "1.014",
                "+ re-mask ratio": "1.037",
                "+ re-mask temperature": "1.070",
                "+ sampling temperature": "1.102",
                "+ guidance scale": "1.122",
            },
        ),
        Item(
            "table-5b",
            "Trained at T steps, tested at others",
            _step_rows(),
            {
                f"{who}, {steps} steps": value
                for who, values in (
                    ("base", ("0.735", "0.902", "0.942", "0.941")),
                    ("Co-GRPO", ("1.053", "1.091", "1.122", "1.099")),
                )
                for steps, value in zip(STEP_COUNTS, values, strict=True)
            },
        ),
        Item(
            "table-5c",
            "Cycles",
            {"0 cycles": BASE_AT_T}
            | {f"{c} cycles": of_seeds("co-grpo", c) for c in range(1, CYCLES + 1)}
            | {
                f"Naive GRPO with the pictures of {c}": of_seeds("naive", c)
                for c in range(1, CYCLES + 1)
            },
            dict(zip([f"{c} cycles" for c in range(4)], ["0.942", "1.067", "1.093", "1.122"])),
        ),
        Item(
            "table-5d",
            "Joint or alternating",
            {"base": BASE_AT_T, "joint": of_seeds("joint"), "alternating": of_seeds("co-grpo")},
            {"base": "0.942", "joint": "1.031", "alternating": "1.122"},
        ),
        Item(
            "table-5e",
            "A reward that was not trained on",
            MAIN,
            {"base": "MPS 13.47, CLIP 31.94", "Co-GRPO": "MPS 14.05, CLIP 32.35"},
            ("shapes-judge",),
        ),
        Item(
            "few-steps",
            "What the schedule adds at fewer steps than were trained (not in the paper)",
            _few_step_rows(),
            {},
            ("shapes-align", "shapes-quality", "checker", "shapes-judge"),
        ),
        Item(
            "steps",
            "The steps that the model learns from, alone, after one cycle (not in the paper)",
            {
                "base": BASE_AT_T,
                "the first": of_seeds("naive", 1),
                "a third, at random": of_seeds("naive-third", 1),
                "all": of_seeds("naive-all", 1),
            },
            {"all": "the paper's"},
        ),
        Item(
            "ratio",
            "The form of the model's ratio, the model alone, after one cycle (not in the paper)",
            {
                "base": BASE_AT_T,
                "one update of a rollout": of_seeds("naive", 1),
            }
            | {
                f"two, {form.replace('_', ' ')}": of_seeds(f"ratio-{form}", 1)
                for form in RATIO_FORMS
            },
            {"two, product": "the paper's"},
        ),
        Item(
            "sigma",
            "Exploration, after one cycle (not in the paper)",
            {
                "base": BASE_AT_T,
                "sigma 0.4": of_seeds("sigma-0.4", 1),
                "sigma 0.8": of_seeds("co-grpo", 1),
                "sigma 1.2": of_seeds("sigma-1.2", 1),
            },
            {},
        ),
        Item(
            "static",
            "Learned against the best static schedule, the model untouched (not in the paper)",
            {
                "base": BASE_AT_T,
                "best constants": [Measure(schedule=BEST_CONSTANT)],
                "best static schedule": [Measure(schedule=BEST_STATIC)],
                "learned schedule": of_seeds(SCHEDULE_ONLY),
            },
            {},
        ),
    )
}


def known(item: Item, is_known: Callable[[Measure], bool]) -> Item:
    """The item with those of its measures that are known already, and rows that have any."""
    rows = {label: list(filter(is_known, measures)) for label, measures in item.rows.items()}
    return replace(item, rows={label: measures for label, measures in rows.items() if measures})


def limited(item: Item, seeds: int) -> Item:
    """The item with at most so many seeds of each run."""
    rows = {
        label: [each for each in measures if each.seed < seeds]
        for label, measures in item.rows.items()
    }
    return replace(item, rows=rows)


def with_same_seeds(rows: Iterable[Sequence[Measure]]) -> list[list[Measure]]:
    """The rows with those seeds alone that all trained rows have, so that like meets like."""
    rows = list(rows)
    of_rows = [{each.seed for each in row} for row in rows if row and row[0].model not in UNTRAINED]
    common = set.intersection(*of_rows) if of_rows else set()
    return [[m for m in row if m.model in UNTRAINED or m.seed in common] for row in rows]


def comparable(item: Item) -> Item:
    """The item with the same seeds in all its trained rows, without those that keep none."""
    kept = zip(item.rows, with_same_seeds(item.rows.values()), strict=True)
    return replace(item, rows={label: measures for label, measures in kept if measures})
