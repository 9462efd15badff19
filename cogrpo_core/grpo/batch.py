"""Logged trajectories as tensors, and the steps that are picked from them for training.

A step is what the likelihood is about: the state V^(t), the action taken there, and the tokens that
were kept. likelihood.py computes with `Steps` only.

Shape letters: B trajectories, T steps (the longest trajectory's), M picked steps, N image tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cogrpo_core.schedule import used_actions
from cogrpo_core.trajectory import Trajectory


@dataclass(frozen=True)
class TrajectoryBatch:
    """B trajectories of one token grid, padded with zeros behind each one's last step."""

    tokens_BN: Tensor
    fill_step_BN: Tensor
    token_logprob_BN: Tensor
    """As logged when the token was drawn."""
    actions_BT4: Tensor
    raw_actions_BT4: Tensor
    """Zeros where no scheduling policy acted."""
    action_logprob_BT: Tensor
    weight_BT: Tensor
    """How much each step counts: 1 unless an earlier policy made it."""
    num_steps_B: Tensor
    grid: tuple[int, int]
    """Rows and columns of tokens, H x W = N."""
    features_BTDhw: Tensor | None = None
    """What the scheduling policy read at each step, where the sampler kept it."""

    def __len__(self) -> int:
        return len(self.num_steps_B)

    def to(self, device: torch.device | str) -> "TrajectoryBatch":
        """The batch on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


def collate(
    trajectories: Sequence[Trajectory], features_BTDhw: Tensor | None = None
) -> TrajectoryBatch:
    """A batch of trajectories, with what the sampler kept of their features; ValueError unless all
    have one token grid."""
    grids = {(each.grid_height, each.grid_width) for each in trajectories}
    if len(grids) != 1:
        raise ValueError(f"a batch needs trajectories of one token grid, not {sorted(grids)}")
    longest = max(each.num_steps for each in trajectories)

    def padded(name: str, width: int | None) -> Tensor:
        shape = (
            (len(trajectories), longest) if width is None else (len(trajectories), longest, width)
        )
        out = np.zeros(shape, np.float32)
        for row, each in zip(out, trajectories, strict=True):
            values = getattr(each, name)
            if values is not None:
                row[: each.num_steps] = values
        return torch.from_numpy(out)

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(each, name) for each in trajectories]))

    return TrajectoryBatch(
        tokens_BN=stacked("tokens"),
        fill_step_BN=stacked("fill_step"),
        token_logprob_BN=stacked("token_logprob"),
        actions_BT4=padded("actions", 4),
        raw_actions_BT4=padded("raw_actions", 4),
        action_logprob_BT=padded("action_logprob", None),
        weight_BT=torch.ones(len(trajectories), longest),
        num_steps_B=torch.tensor([each.num_steps for each in trajectories]),
        grid=grids.pop(),
        features_BTDhw=features_BTDhw,
    )


@dataclass(frozen=True)
class Steps:
    """M steps of trajectories, each with its state, action and kept tokens."""

    sample_M: Tensor
    """The trajectory that each step belongs to, an index into the batch."""
    step_M: Tensor
    num_steps_M: Tensor
    state_MN: Tensor
    """V^(t): the tokens known before the step, [M] elsewhere."""
    tokens_MN: Tensor
    """The final tokens."""
    filled_MN: Tensor
    """I_t: the positions that the step filled for good."""
    token_logprob_MN: Tensor
    actions_M4: Tensor
    raw_actions_M4: Tensor
    action_logprob_M: Tensor
    weight_M: Tensor
    used_M4: Tensor
    """Which components of the action the step used."""
    grid: tuple[int, int]
    features_MDhw: Tensor | None = None
    """What the scheduling policy read, where the sampler kept it."""

    def __len__(self) -> int:
        return len(self.sample_M)

    @property
    def time_M(self) -> Tensor:
        """t/T, as the scheduling policy takes it."""
        return self.step_M / self.num_steps_M

    @property
    def remaining_M(self) -> Tensor:
        """Steps remaining, T-1 ... 0, as the transformer takes it."""
        return self.num_steps_M - 1 - self.step_M


def all_steps(batch: TrajectoryBatch) -> tuple[Tensor, Tensor]:
    """(sample, step) of every step of every trajectory, trajectory by trajectory."""
    steps_T = torch.arange(batch.actions_BT4.shape[1], device=batch.num_steps_B.device)
    pairs = (steps_T[None] < batch.num_steps_B[:, None]).nonzero()
    return pairs[:, 0], pairs[:, 1]


def pick_steps(
    batch: TrajectoryBatch, sample_M: Tensor, step_M: Tensor, mask_token_id: int
) -> Steps:
    """The steps (sample, step) of a batch."""
    tokens_MN, fill_step_MN = batch.tokens_BN[sample_M], batch.fill_step_BN[sample_M]
    num_steps_M, kept = batch.num_steps_B[sample_M], batch.features_BTDhw
    return Steps(
        sample_M=sample_M,
        step_M=step_M,
        num_steps_M=num_steps_M,
        state_MN=torch.where(fill_step_MN < step_M[:, None], tokens_MN, mask_token_id),
        tokens_MN=tokens_MN,
        filled_MN=fill_step_MN == step_M[:, None],
        token_logprob_MN=batch.token_logprob_BN[sample_M],
        actions_M4=batch.actions_BT4[sample_M, step_M],
        raw_actions_M4=batch.raw_actions_BT4[sample_M, step_M],
        action_logprob_M=batch.action_logprob_BT[sample_M, step_M],
        weight_M=batch.weight_BT[sample_M, step_M],
        used_M4=used_actions(step_M, num_steps_M),
        grid=batch.grid,
        features_MDhw=None if kept is None else kept[sample_M, step_M],
    )


MORE_THAN_T = 2**15
"""No trajectory has so many steps: its fill steps are 16-bit."""


def first_states(text_M: Tensor, step_M: Tensor, num_steps_M: Tensor) -> Tensor:
    """Numbers [M] of what steps begin with: first steps of one text and T begin at the same masks,
    and have the same number; later steps have -1.
    """
    return torch.where(step_M == 0, text_M * MORE_THAN_T + num_steps_M, -1)


@dataclass(frozen=True)
class Distinct:
    """Forward passes of which some are the same: R of S are made."""

    row_R: Tensor
    """The passes that are made, indices into the S."""
    place_S: Tensor
    """Where each of the S is among them."""


def distinct_passes(steps: Steps, text_S: Tensor) -> Distinct:
    """Which passes of M steps differ, as `first_states` has it.

    `text_S` numbers the texts: [M], or [2M] with the unconditional passes behind the conditional.
    """
    copies = len(text_S) // len(steps)
    same_S = first_states(text_S, steps.step_M.repeat(copies), steps.num_steps_M.repeat(copies))
    order_S = torch.arange(len(text_S), device=text_S.device)
    _, place_S = torch.where(same_S < 0, order_S, -1 - same_S).unique(return_inverse=True)
    row_R = order_S.new_zeros(int(place_S.max()) + 1)
    return Distinct(row_R.scatter_reduce(0, place_S, order_S, "amin", include_self=False), place_S)
