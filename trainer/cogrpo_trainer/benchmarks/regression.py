"""Whether this version is as fast as the last one: ratios against a committed file (`make bench`).

Ratios of variants that ran in turn on one machine; processor time, so that neighbours matter less.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).parent / "expected.json"


def ratios(sampler: Mapping[str, Any], learner: Mapping[str, Any]) -> dict[str, float]:
    """What is guarded, more is better: times faster, and how many times less memory."""
    model, schedule = learner["model"], learner["schedule"]
    return {
        "sampler": sampler["faster"]["cpu"]["median"],
        "learner": model["faster"]["cogrpo, 16 steps a pass"]["cpu"]["median"],
        "learner memory": 1 / model["memory"]["cogrpo, 16 steps a pass"],
        "learner, schedule": schedule["faster"]["cogrpo, 16 steps a pass"]["cpu"]["median"],
    }


def slower(found: Mapping[str, float], expected: Mapping[str, Any]) -> list[str]:
    """One line for each ratio that fell by more than the file's tolerance, or is missing."""
    lines = []
    for name, value in expected["ratios"].items():
        least = value * (1 - expected["tolerance"])
        got = found.get(name)
        if got is None or not got >= least:
            said = "was not measured" if got is None else f"is {got:.2f}"
            lines.append(f"{name}: {said}; {value:.2f} was committed, at least {least:.2f} passes")
    return lines


def committed() -> dict[str, Any]:
    """The committed ratios and their tolerance."""
    values: dict[str, Any] = json.loads(EXPECTED.read_text())
    return values
