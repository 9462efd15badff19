"""What the host knows of the steps before they run, so that it never waits for the device.

How many tokens are masked and who needs guidance follows from the schedule; a scheduling policy
moves the counts, and then there is a bound. denoise.py and slots.py read it.

Shape letters: B samples, N image tokens, T steps.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogrpo_core.kernels.remask import remask_count
from cogrpo_core.schedule import GUIDANCE_SCALE, REMASK_RATIO


@dataclass(frozen=True)
class Course:
    """The steps of one sample, 0 ... T-1."""

    guided: tuple[bool, ...]
    """Whether the step needs the unconditional pass."""
    masked: tuple[int, ...]
    """How many tokens are masked before the step: exactly, or at most where a policy decides."""
    learned: bool

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.guided)


@dataclass(frozen=True)
class Ahead:
    """The next step of B samples."""

    guided: tuple[int, ...]
    """The samples that need the unconditional pass."""
    masked: int
    """The masked tokens of all samples, exactly or at most."""
    learned: bool
    """Whether a scheduling policy moves the actions of any."""
    alike: tuple[int, ...] = ()
    """Where all are at their first step and some begin with one text and T, so that their passes
    are the same: for each sample the first one that begins as it does. Else empty."""


def course(actions_T4: Tensor, num_tokens: int, *, learned: bool = False) -> Course:
    """The course of a sample with this schedule, a tensor on the CPU."""
    steps = len(actions_T4)
    guided = (actions_T4[:, GUIDANCE_SCALE] != 1).tolist()
    masked = [num_tokens]
    if learned:
        # Each step fills at least one token, but the last one left waits for the last step.
        masked = [max(num_tokens - step, 1) for step in range(steps)]
        guided = [True] * steps
    for ratio in actions_T4[: steps - 1, REMASK_RATIO] if not learned else ():
        now = torch.tensor([masked[-1]])
        masked.append(int(remask_count(ratio[None], now, num_tokens, torch.tensor([False]))))
    return Course(tuple(guided), tuple(masked), learned)


def look_ahead(
    courses: Iterable[Course], steps: Iterable[int], texts: Sequence[Hashable] = ()
) -> Ahead:
    """The next step of samples with these courses, each at its own step.

    `texts` names what each is conditioned on, so that equal first passes are found.
    """
    pairs = list(zip(courses, steps, strict=True))
    alike: tuple[int, ...] = ()
    if texts and not any(step for _, step in pairs):
        first: dict[Hashable, int] = {}
        alike = tuple(
            first.setdefault((text, each.num_steps, each.guided[0]), row)
            for row, ((each, _), text) in enumerate(zip(pairs, texts, strict=True))
        )
        if len(first) == len(pairs):
            alike = ()
    return Ahead(
        guided=tuple(i for i, (each, step) in enumerate(pairs) if each.guided[step]),
        masked=sum(each.masked[step] for each, step in pairs),
        learned=any(each.learned for each, _ in pairs),
        alike=alike,
    )


def on_device(values: Sequence[Any], device: torch.device | str) -> Tensor:
    """A small constant on a device, without waiting for what the device still has to do."""
    return torch.tensor(values).to(device, non_blocking=True)


def true_positions(mask: Tensor, at_most: int) -> Tensor:
    """The flat indices where `mask` is true, in order; on a GPU `at_most` of them, padded with 0.

    The padding stands at the end. On a CPU their number costs nothing and there is none.
    """
    flat = mask.flatten()
    if mask.device.type == "cpu":
        return flat.nonzero()[:, 0]
    return flat.nonzero_static(size=at_most, fill_value=0)[:, 0]
