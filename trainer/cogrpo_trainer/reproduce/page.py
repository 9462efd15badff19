"""Renders docs/reproduction.md and its plots from the results of the items."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cogrpo_trainer.reproduce.plan import ALL_STEPS, HORIZON, ITEMS, STEP_COUNTS

HEAD = """# The paper's tables, in form, on the embedded world

`cogrpo reproduce all --page docs/reproduction.md` trains, measures and writes this page;
`cogrpo reproduce NAME` does one item. The paper's numbers are of a 1B model, ImageReward and HPSv2;
ours are of the embedded model, `shapes-align` and `shapes-quality` ([rewards.md](rewards.md)). What
can be compared is the form: which row is above which. {steps}

Means are over {prompts} held-out prompts with the same seeds in every row; intervals are 95 %, over
prompts. A gain is paired, over the table's first row. All runs are the preset `shapes` with three
cycles where nothing else is said; Naive GRPO and joint runs see as many pictures as Co-GRPO does.
The trained rows of a table, and the two sides of a statement, are of the same seeds.

What was measured is in [results/reproduction](results/reproduction): copied to `runs/reproduce`, it
lets the command go on, and only what is missing is trained and measured. What the figures mean, and
why a row did not come out, is in [training.md](training.md#what-came-out).
"""
NOTE = "Made by `{command}` at commit {commit}{budget}.\n"
STEPS = (
    f"T = {HORIZON} stands for the paper's 48 steps, and {', '.join(map(str, STEP_COUNTS))} for "
    "its 16, 32, 48, 64."
)


CLAIMS = """## What came out

Each statement of the paper as one number, which is above zero where it is true, with its paired
95 % interval: *yes* and *no* are sure, *open* is neither.

| statement | reward | | seeds | |
|---|---|---|---|---|
{rows}
"""


def write_page(
    results: Mapping[str, Any], claims: Sequence[Mapping[str, Any]], page: Path, images: Path
) -> None:
    """The page: the claims, then a section for each item that has results."""
    if not results:
        return
    images.mkdir(parents=True, exist_ok=True)
    any_result = next(iter(results.values()))
    text = [HEAD.format(steps=STEPS, prompts=any_result["prompts"])]
    rows = [
        f"| {row['claim']} | {row['column']} | {row['value']:+.3f} ({row['low']:+.3f} to "
        f"{row['high']:+.3f}) | {row['seeds']} | {row['verdict']} |"
        for row in claims
    ]
    text.append(CLAIMS.format(rows="\n".join(rows)))
    for name, item in ITEMS.items():
        if name not in results:
            continue
        result = results[name]
        text.append(f"## {name}: {item.title}\n\n{_table(result)}")
        if name == "table-5b":
            figure = steps_figure(result)
            figure.savefig(images / "reproduction-steps.png", dpi=110)
            text.append("![Score against steps and time](images/reproduction-steps.png)\n")
            text.append(_fewer_steps(result))
        scale = result["budget"]["scale"]
        budget = "" if scale == 1.0 else f", with {scale:g} of the iterations"
        text.append(NOTE.format(command=result["command"], commit=result["commit"], budget=budget))
    missing = ", ".join(name for name in ITEMS if name not in results)
    if missing:
        text.append(f"Not measured yet: {missing}.\n")
    page.write_text("\n".join(text))


def _table(result: Mapping[str, Any]) -> str:
    columns = list(result["rows"][0]["columns"])
    lines = [
        "| | " + " | ".join(columns) + " | paper |",
        "|---|" + "---|" * len(columns) + "---|",
    ]
    for i, row in enumerate(result["rows"]):
        cells = [_cell(row["columns"][column], first=i == 0) for column in columns]
        seeds = len(row["columns"][columns[0]]["by_seed"])
        label = row["label"] + (f" ({seeds} seeds)" if seeds > 1 else "")
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {row['paper']} |")
    return "\n".join(lines) + "\n"


def _cell(cell: Mapping[str, Any], *, first: bool) -> str:
    mean, gain = cell["mean"], cell["gain"]
    half = (mean["high"] - mean["low"]) / 2
    text = f"{mean['value']:.3f} ± {half:.3f}"
    if not first:
        text += f" ({gain['value']:+.3f}, {gain['low']:+.3f} to {gain['high']:+.3f})"
    return text


def _fewer_steps(result: Mapping[str, Any]) -> str:
    """For each number of steps of the base, the fewest with which Co-GRPO has both its means."""
    columns = {row["label"]: row["columns"] for row in result["rows"]}
    seconds = result["seconds"]
    lines = [
        "Fewest steps with which both of Co-GRPO's means reach the base's; how many times "
        "fewer that is, and how many times less in measured time:\n",
        "| the base at | Co-GRPO at | steps | time |",
        "|---|---|---|---|",
    ]
    for of_base in ALL_STEPS:
        base = columns[f"base, {of_base} steps"]
        reached = [
            fewer
            for fewer in ALL_STEPS
            if all(
                cell["mean"]["value"] >= base[name]["mean"]["value"]
                for name, cell in columns[f"Co-GRPO, {fewer} steps"].items()
            )
        ]
        if not reached:
            lines.append(f"| {of_base} | not reached | | |")
            continue
        time = seconds[f"base, {of_base} steps"] / seconds[f"Co-GRPO, {reached[0]} steps"]
        lines.append(f"| {of_base} | {reached[0]} | {of_base / reached[0]:.1f} | {time:.1f} |")
    return "\n".join(lines) + "\n"


def steps_figure(result: Mapping[str, Any]) -> Figure:
    """Figure 5: the first reward against steps, and against measured time."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, result, lambda who, steps: steps)
    left.set_xlabel("steps")
    seconds = result.get("seconds", {})
    _lines(right, result, lambda who, steps: seconds.get(f"{who}, {steps} steps"))
    right.set_xlabel("seconds a picture, one core, policy included")
    for axis in (left, right):
        axis.set_ylabel("shapes-align")
        axis.legend()
        axis.grid(alpha=0.3)
    return figure


def _lines(axis: Axes, result: Mapping[str, Any], place: Any) -> None:
    rows = {row["label"]: row["columns"]["shapes-align"]["mean"] for row in result["rows"]}
    for who in ("base", "Co-GRPO"):
        points = [(place(who, steps), rows[f"{who}, {steps} steps"]) for steps in ALL_STEPS]
        points = [(x, mean) for x, mean in points if x is not None]
        if points:
            xs = [x for x, _ in points]
            axis.plot(xs, [mean["value"] for _, mean in points], marker="o", label=who)
            axis.fill_between(
                xs, [m["low"] for _, m in points], [m["high"] for _, m in points], alpha=0.2
            )
