"""The demo's report: one page, two plots, and pictures before and after."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cogrpo_core.compare import draw_rows
from cogrpo_trainer.measure import CHECKER, Mean, mean
from demo.results import HELD_OUT, REWARD, TRAINED, Results
from demo.story import RATE, STEP_COUNTS, STEPS, Story
from demo.users import Picture

SIDE_BY_SIDE = 7
LETTERS = 26
ROLLING = 40
"""Pictures of the crowd in one point of the curve."""


def write_report(story: Story, results: Results, page: Path, made_by: str) -> None:
    """Writes `page`, and its pictures to `images/` beside it, named after the page."""
    images = page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    names = {kind: f"{page.stem}-{kind}.png" for kind in ("timeline", "steps", "pictures")}
    timeline(story, results).savefig(images / names["timeline"], dpi=110)
    steps_figure(results).savefig(images / names["steps"], dpi=110)
    side_by_side(story).save(images / names["pictures"], optimize=True)
    page.write_text(_page(story, results, names, made_by))


def _page(story: Story, results: Results, names: dict[str, str], made_by: str) -> str:
    assert story.cycle is not None and story.cycle.evaluation is not None
    evaluation, minutes = story.cycle.evaluation, (story.ended - story.begin) / 60
    spent = [
        f"{phase} {end - start:.0f} s"
        for (start, phase), (end, _) in itertools.pairwise(story.phases)
    ]
    rows = [
        f"| {name} | {mean(results.before[STEPS][name]).value:.3f} | "
        f"{mean(results.after[STEPS][name]).value:.3f} | {_gain(results.gains[name])} |"
        for name in (REWARD, *TRAINED, HELD_OUT, CHECKER)
    ]
    fewer = [
        f"| {few} | {mean(results.after[few][REWARD]).value:.3f} | {many} | "
        f"{mean(results.before[many][REWARD]).value:.3f} | {_gain(gap)} |"
        for (few, many), gap in results.fewer.items()
    ]
    effect, interval = evaluation.effect or 0.0, evaluation.interval or (0.0, 0.0)
    return f"""# One cycle of the online loop

Written by `{made_by}`. The whole system on one machine: Redis, Ray Serve with one engine of one
thread, a trainer of one thread. Simulated users ask for pictures of {STEPS} steps, {RATE:g} a
second, all the time. The base model is measured through the service, an admin call starts a
training cycle, its challenger passes the gate and is swapped into the engine, and what serves then
is measured on the same prompts and seeds. It took {minutes:.0f} minutes.

## What users got

![Live reward over time](images/{names["timeline"]})

{len(story.crowd.pictures)} pictures, {len(story.crowd.failures)} failed requests. The mean reward
of the crowd's pictures was {_mean(results.live_before)} by the base model and
{_mean(results.live_after)} by `{story.cycle.policy_version}`.

| seconds to the answer | requests | median | 99 % |
|---|---|---|---|
{chr(10).join(latency_rows(story))}

## The same prompts and seeds, before and after

{len(story.prompts)} held-out prompts at {STEPS} steps, through `POST /generate`; neither training
nor gate has seen them. The gain is paired, with its 95 % interval. The reward is the mean of the
two rewards that are trained on; `{HELD_OUT}` and the checker are not trained on.

| | before | after | gain |
|---|---|---|---|
{chr(10).join(rows)}

![Pictures before and after](images/{names["pictures"]})

## Fewer steps

![Reward by steps](images/{names["steps"]})

The new version at fewer steps than the base:

| its steps | reward | the base's steps | reward | difference |
|---|---|---|---|---|
{chr(10).join(fewer)}

## The cycle

{story.cycle.iterations} iterations; {", ".join(spent)}. The gate saw an effect of {effect:+.3f}
({interval[0]:+.3f} to {interval[1]:+.3f}) over {evaluation.prompts} prompts, and passed it.
"""


def latency_rows(story: Story) -> list[str]:
    """What users waited when they were alone, and with a training cycle beside them."""
    cycle = [(story.phases[0][0], story.phases[-1][0])]
    rows = []
    for label, spans in (("users alone", story.alone), ("a training cycle beside them", cycle)):
        seconds = [
            picture.seconds
            for picture in story.crowd.pictures
            if any(begin <= picture.moment < end for begin, end in spans)
        ]
        middle, most = np.quantile(seconds, [0.5, 0.99])
        rows.append(f"| {label} | {len(seconds)} | {middle:.2f} | {most:.2f} |")
    return rows


def _gain(gain: Mean) -> str:
    return f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def _mean(found: Mean) -> str:
    return f"{found.value:.3f} ± {(found.high - found.low) / 2:.3f} (of {found.n})"


def timeline(story: Story, results: Results) -> Figure:
    """The crowd's reward and latency over time, with the cycle's phases and the swap."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    pictures = story.crowd.pictures
    order = np.argsort([picture.moment for picture in pictures])
    minutes = np.array([(pictures[i].moment - story.begin) / 60 for i in order])
    width = min(ROLLING, len(order))
    rolling = np.convolve(results.live[order], np.ones(width) / width, "valid")
    top.plot(minutes, results.live[order], ".", color="0.8", markersize=3)
    top.plot(minutes[width // 2 :][: len(rolling)], rolling, label=f"mean of {width}")
    top.set_ylabel("live reward")
    bottom.plot(minutes, [pictures[i].seconds for i in order], ".", markersize=3)
    bottom.set_ylabel("seconds to the answer")
    bottom.set_xlabel("minutes")
    for axis in (top, bottom):
        _mark(axis, story)
        axis.grid(alpha=0.3)
    top.legend(loc="lower right")
    return figure


def _mark(axis: Axes, story: Story) -> None:
    for number, ((start, phase), (end, _)) in enumerate(itertools.pairwise(story.phases)):
        begin, stop = (start - story.begin) / 60, (end - story.begin) / 60
        axis.axvspan(begin, stop, color=f"C{number + 1}", alpha=0.12, label=f"cycle: {phase}")
    if story.promoted is not None:
        axis.axvline((story.promoted - story.begin) / 60, color="k", label="all replicas swapped")


def steps_figure(results: Results) -> Figure:
    """The reward on held-out prompts by number of steps, with 95 % intervals."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for label, scores in (("base", results.before), ("after one cycle", results.after)):
        means = [mean(scores[steps][REWARD]) for steps in STEP_COUNTS]
        axis.plot(STEP_COUNTS, [m.value for m in means], marker="o", label=label)
        axis.fill_between(STEP_COUNTS, [m.low for m in means], [m.high for m in means], alpha=0.2)
    axis.set_xlabel("steps")
    axis.set_ylabel("reward")
    axis.legend()
    axis.grid(alpha=0.3)
    return figure


def _caption(prompt: str) -> str:
    """Two lines, as wide as a picture."""
    return textwrap.fill(prompt, LETTERS, max_lines=2, placeholder="...")


def side_by_side(story: Story) -> Image.Image:
    """The same prompts and seeds before and after; prompts spread over the tasks."""
    number = len(story.prompts)
    chosen = [round(i * (number - 1) / (SIDE_BY_SIDE - 1)) for i in range(SIDE_BY_SIDE)]

    def row(pictures: Sequence[Picture]) -> list[tuple[str, Image.Image]]:
        return [(_caption(pictures[i].prompt), Image.fromarray(pictures[i].pixels)) for i in chosen]

    assert story.cycle is not None
    return draw_rows(
        f"{STEPS} steps, equal seeds",
        [
            ("before: base", row(story.before[STEPS])),
            (f"after: {story.cycle.policy_version}", row(story.after[STEPS])),
        ],
    )
