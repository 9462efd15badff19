"""From pictures to figures: rewards of what users got, and gains with their intervals."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogrpo_core.rewards.composite import Composite
from cogrpo_core.shapes.suites import Prompt, score
from cogrpo_trainer.evaluate import checkable
from cogrpo_trainer.measure import CHECKER, Mean, Scores, gains, mean, scorers
from demo.story import STEP_COUNTS, STEPS, Story
from demo.users import Picture

TRAINED = ("shapes-align", "shapes-quality")
HELD_OUT = "shapes-judge"
REWARD = "reward"
"""The mean of the two that are trained on, as in the trainer's preset."""


@dataclass(frozen=True)
class Results:
    """What the report is made of. Scores are [B], of the held-out prompts."""

    before: dict[int, Scores]
    after: dict[int, Scores]
    gains: dict[str, Mean]
    """At equal steps, paired."""
    fewer: dict[tuple[int, int], Mean]
    """By two neighbouring numbers of steps: the champion's reward at the fewer less the base's at
    the more."""
    live_before: Mean
    live_after: Mean
    """Of the crowd's pictures, by the version that made them."""
    live: NDArray[np.float64]
    """[pictures] of the crowd, in the order of `Story.crowd.pictures`."""


def results_of(story: Story, prompts: Sequence[Prompt]) -> Results:
    """Scores every picture of a story that came to its end."""
    composite = scorers([*TRAINED, HELD_OUT], 600.0)
    before = {n: _held_out(story.before[n], prompts, composite) for n in STEP_COUNTS}
    after = {n: _held_out(story.after[n], prompts, composite) for n in STEP_COUNTS}
    pictures = story.crowd.pictures
    live = _scores(pictures, composite)[REWARD]
    assert story.cycle is not None
    new = np.array([picture.version == story.cycle.policy_version for picture in pictures])
    return Results(
        before,
        after,
        dict(gains(after[STEPS], before[STEPS])),
        {
            (few, many): mean(after[few][REWARD] - before[many][REWARD])
            for few, many in itertools.pairwise(STEP_COUNTS)
        },
        mean(live[~new]),
        mean(live[new]),
        live,
    )


def _held_out(
    pictures: Sequence[Picture], prompts: Sequence[Prompt], composite: Composite
) -> Scores:
    checked = [
        score(prompt.task, prompt.spec, checkable(Image.fromarray(picture.pixels)))
        for prompt, picture in zip(prompts, pictures, strict=True)
    ]
    return _scores(pictures, composite) | {CHECKER: np.array(checked, np.float64)}


def _scores(pictures: Sequence[Picture], composite: Composite) -> Scores:
    found: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, len(pictures), 64):
        part = pictures[start : start + 64]
        pixels, texts = np.stack([one.pixels for one in part]), [one.prompt for one in part]
        for name, values in composite.score(pixels, texts).by_reward.items():
            found.setdefault(name, []).append(np.asarray(values, np.float64))
    scores = {name: np.concatenate(values) for name, values in found.items()}
    return scores | {REWARD: np.mean([scores[name] for name in TRAINED], axis=0)}
