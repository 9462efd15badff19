"""Tensors that may be sharded over several learners: put together, copied, sharded alike."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, put together where they are sharded; all learners must call it together."""
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in values.items()
    }


@torch.no_grad()
def copy_into(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies values, whole or sharded alike, into tensors of the same names and shapes."""
    for name, value in values.items():
        own[name].copy_(like(value, own[name]))


def like(value: Tensor, model: Tensor) -> Tensor:
    """A whole value, where `model` is and sharded as it; counters stay where they are."""
    if isinstance(value, DTensor) or not value.ndim:
        return value
    value = value.to(model.device)
    if isinstance(model, DTensor):
        return distribute_tensor(value, model.device_mesh, model.placements)
    return value
