"""The states of pre-training: modules and optimisers, kept by cogrpo_trainer/state.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cogrpo_trainer import state
from cogrpo_trainer.state import StateError, optimizer_tensors, restore_optimizer
from cogrpo_trainer.tensors import copy_into


def save_state(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Writes the state after `step` steps. A crash in between leaves the state before."""
    parts: dict[str, Mapping[str, Tensor]] = {
        name: dict(module.named_parameters()) for name, module in modules.items()
    }
    parts |= {f"optimizer-{i}": optimizer_tensors(each) for i, each in enumerate(optimizers)}
    state.save_state(folder, step, parts)


def load_state(
    folder: Path, modules: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer]
) -> int:
    """Restores what `save_state` wrote; gives the steps done, 0 where nothing was saved.

    Raises `StateError` for a damaged state and for another model's.
    """
    saved = state.load_state(folder)
    if saved is None:
        return 0
    for name, module in modules.items():
        own, values = dict(module.named_parameters()), saved.parts[name]
        shapes = {key: value.shape for key, value in own.items()}
        if shapes != {key: value.shape for key, value in values.items()}:
            raise StateError(f"{folder}: the saved state is another model's; choose another folder")
        copy_into(own, values)  # buffers are constants
    for i, optimizer in enumerate(optimizers):
        restore_optimizer(optimizer, saved.parts[f"optimizer-{i}"])
    return saved.step
