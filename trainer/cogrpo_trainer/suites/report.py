"""What a published suite gave: as JSON, and as a table in the form of the paper's."""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cogrpo_trainer.evaluate import Interval
from cogrpo_trainer.measure import mean

PLACES = 4


@dataclass(frozen=True)
class SuiteReport:
    """Means over prompts with their 95 % intervals, in the scorer's own scale."""

    suite: str
    model: str
    fingerprint: str
    schedule: str
    steps: int
    seeds: int
    """Pictures of a prompt."""
    scored_by: str
    """The scorer and its version."""
    rows: dict[str, Interval]
    """By style or task; empty where the suite has but one score."""
    overall: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers to four places, and None for what one prompt alone cannot tell."""
        plain = asdict(self)
        for row in (*plain["rows"].values(), plain["overall"]):
            for name in ("score", "low", "high"):
                row[name] = round(row[name], PLACES) if math.isfinite(row[name]) else None
        return plain


def interval(values: Sequence[float]) -> Interval:
    """The mean over prompts and the normal interval of its standard error."""
    found = mean(np.asarray(values, np.float64))
    return Interval(found.value, found.low, found.high, found.n)


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Interval:
    """sum(sums) / sum(counts), with a value of both for each prompt, and its interval over prompts.

    The normal interval of a ratio estimate: s - r c, over the mean count, is what a prompt adds to
    the ratio r (Cochran, Sampling Techniques, 1977).
    """
    sums_B, counts_B = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    found = sums_B.sum() / counts_B.sum()
    return interval(found + (sums_B - found * counts_B) / counts_B.mean())


def print_report(report: SuiteReport, *, last: str, scale: float, digits: int) -> None:
    """The paper's table: a column a style or task, `last` for the average, `scale` times each."""
    times = f", times {scale:g}" if scale != 1 else ""
    title = (
        f"{report.suite}, {report.scored_by}{times}: {report.schedule}, {report.steps} steps, "
        f"{report.seeds} pictures a prompt"
    )
    columns = report.rows | {last: report.overall}
    table = Table("model", title=title)
    for heading in columns:
        table.add_column(heading.replace("_", " "), justify="right")
    for name, cells in (
        (report.model, [f"{scale * one.score:.{digits}f}" for one in columns.values()]),
        ("95 % from", [f"{scale * one.low:.{digits}f}" for one in columns.values()]),
        ("to", [f"{scale * one.high:.{digits}f}" for one in columns.values()]),
        ("prompts", [str(one.n) for one in columns.values()]),
    ):
        table.add_row(name, *cells)
    Console(file=sys.stdout).print(table)
