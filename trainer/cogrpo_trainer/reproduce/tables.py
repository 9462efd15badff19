"""The rows of an item: means with 95 % intervals over held-out prompts, seeds pooled.

Shape letters: S seeds, B prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cogrpo_core.rewards.quality import style_of
from cogrpo_core.shapes.scenes import STYLES
from cogrpo_core.shapes.suites import Prompt
from cogrpo_trainer.measure import CHECKER, Scores, mean
from cogrpo_trainer.reproduce.plan import Item, Measure

ScoresOf = Callable[[Measure], Scores]
GENEVAL, LONG = "geneval", "long"


def rows_of(item: Item, scores_of: ScoresOf, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """One row a label: the mean of each column, its gain over the first row, the paper's figure."""
    columns = list(item.columns)
    if item.name == "table-3":
        columns += [f"shapes-quality/{style}" for style in STYLES]
    first: dict[str, NDArray[np.float64]] = {}
    rows = []
    for label, measures in item.rows.items():
        found = [scores_of(each) for each in measures]
        cells = {}
        for column in columns:
            pooled = np.stack([column_values(scores, column, prompts) for scores in found])
            # Seeds share prompts, so each prompt counts once, with the mean of its seeds.
            values = pooled.mean(axis=0)
            base = first.setdefault(column, values)
            cells[column] = {
                "mean": asdict(mean(values)),
                "gain": asdict(mean(values - base)),
                "by_seed": [float(np.nanmean(each)) for each in pooled],
            }
        rows.append({"label": label, "paper": item.paper.get(label, ""), "columns": cells})
    return rows


def column_values(scores: Scores, column: str, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
    """A column's values [B]: a reward on all or one style's prompts, or the checker on a suite."""
    name, _, style = column.partition("/")
    is_long = np.array([prompt.task == LONG for prompt in prompts])
    if name == GENEVAL:
        return scores[CHECKER][~is_long]
    if name == LONG:
        return scores[CHECKER][is_long]
    if style:
        return scores[name][np.array([style_of(prompt.text) == style for prompt in prompts])]
    return scores[name]
