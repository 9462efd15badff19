"""What the paper says of its tables, each as one number that is above zero if it holds here too.

A claim is a sum of weighted measures, taken prompt by prompt, so that its interval is paired.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cogrpo_core.shapes.suites import Prompt
from cogrpo_trainer.measure import Scores, mean
from cogrpo_trainer.reproduce.plan import (
    BEST_STATIC,
    CYCLES,
    FEW_STEPS,
    HORIZON,
    ITEMS,
    MORE_STEPS,
    SCHEDULE_ONLY,
    STEP_COUNTS,
    Measure,
    of_seeds,
    with_same_seeds,
)
from cogrpo_trainer.reproduce.tables import column_values

ALL = ("shapes-align", "shapes-quality", "checker", "shapes-judge")
TRAINED = ("shapes-align", "shapes-quality")
Term = tuple[float, tuple[Measure, ...]]
"""A weight, and measures of which the mean over seeds is taken."""


@dataclass(frozen=True)
class Claim:
    """A statement, and what is above zero where it is true."""

    text: str
    column: str
    terms: tuple[Term, ...]


def _above(high: Iterable[Measure], low: Iterable[Measure]) -> tuple[Term, Term]:
    return (1.0, tuple(high)), (-1.0, tuple(low))


def _gain(measures: Iterable[Measure], steps: int = HORIZON, weight: float = 1.0) -> list[Term]:
    """Over the base model with as many steps."""
    return [(weight, tuple(measures)), (-weight, (Measure(steps=steps),))]


def claims() -> list[Claim]:
    """Those of the paper's section 5, as far as its tables have them, and one of ours."""
    base, naive, best = [Measure()], of_seeds("naive"), of_seeds("co-grpo")
    few, many = STEP_COUNTS[0], MORE_STEPS[0]
    found = [Claim("Naive GRPO is above the base", c, _above(naive, base)) for c in ALL]
    found += [Claim("Co-GRPO is above Naive GRPO", c, _above(best, naive)) for c in ALL]
    found += [Claim("Co-GRPO is above the base", c, _above(best, base)) for c in ALL]
    for steps in FEW_STEPS:
        at_few = _above(of_seeds("co-grpo", steps=steps), of_seeds("naive", steps=steps))
        found += [Claim(f"Co-GRPO is above Naive GRPO at {steps} steps", c, at_few) for c in ALL]
    for (_, less), (label, more) in pairwise(list(ITEMS["table-5a"].rows.items())[1:]):
        text = f"Table 5a: {label} is above the row before"
        found += [Claim(text, c, _above(more, less)) for c in TRAINED]
    alternating = _above(best, of_seeds("joint"))
    found += [Claim("alternating is above joint", c, alternating) for c in TRAINED]
    half = (*_gain(of_seeds("co-grpo", 1)), *_gain(best, weight=-0.5))
    text = f"the first of {CYCLES} cycles has more than half of the gain"
    found += [Claim(text, c, half) for c in TRAINED]
    gains = (
        *_gain(of_seeds("co-grpo", steps=few), few),
        *_gain(of_seeds("co-grpo", steps=many), many, -1.0),
    )
    found += [Claim(f"the gain at {few} steps is above that at {many}", c, gains) for c in TRAINED]
    for fewer, of_base in ((few, HORIZON), (HORIZON, MORE_STEPS[-1])):
        reached = _above(of_seeds("co-grpo", steps=fewer), [Measure(steps=of_base)])
        text = f"Co-GRPO at {fewer} steps is above the base at {of_base}"
        found += [Claim(text, c, reached) for c in ALL]
    alone = _above(of_seeds(SCHEDULE_ONLY), [Measure(schedule=BEST_STATIC)])
    text = "the learned schedule alone is above the best static one"
    return found + [Claim(text, c, alone) for c in ALL]


def tested(
    saved: Callable[[Measure], Scores | None], prompts: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """The claims whose terms are measured: value, interval, verdict, and on how many seeds.

    `yes` and `no` are sure at 95 %; what is neither is `open`.
    """
    rows = []
    for claim in claims():
        found = {
            each: scores
            for _, measures in claim.terms
            for each in measures
            if (scores := saved(each)) is not None
        }
        terms = with_same_seeds([m for m in measures if m in found] for _, measures in claim.terms)
        if not all(terms):
            continue
        total: NDArray[np.float64] = np.zeros(len(prompts))
        for (weight, _), measures in zip(claim.terms, terms, strict=True):
            values = [column_values(found[each], claim.column, prompts) for each in measures]
            total = total + weight * np.mean(values, axis=0)
        value = mean(total)
        verdict = "yes" if value.low > 0 else "no" if value.high < 0 else "open"
        row = {"claim": claim.text, "column": claim.column, "seeds": max(map(len, terms))}
        rows.append(row | asdict(value) | {"verdict": verdict})
    return rows
