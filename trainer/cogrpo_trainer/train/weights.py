"""The weights of a run: what is trained, its average, and another set for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from cogrpo_core.models.schedule_policy import SchedulePolicy
from cogrpo_core.models.transformer import MeissonicTransformer
from cogrpo_trainer.tensors import copy_into


@dataclass(frozen=True)
class Trained:
    """Model and schedule, which sampler and learner share."""

    transformer: MeissonicTransformer
    policy: SchedulePolicy

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Both parts by name."""
        return {"model": self.transformer, "schedule": self.policy}

    def parameters(self) -> dict[str, Tensor]:
        """All trained parameters; names begin with `model.` or `schedule.`."""
        if isinstance(self.transformer, FSDPModule):
            self.transformer.reshard()  # a pass without gradient leaves the outer weights gathered
        return {
            f"{part}.{name}": value
            for part, module in self.modules.items()
            for name, value in module.named_parameters()
            if value.requires_grad
        }

    @contextmanager
    def swapped(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Has these values of the parameters while the block runs, and then its own again."""
        own = self.parameters()
        kept = {name: own[name].detach().clone() for name in values}
        copy_into(own, values)
        try:
            yield
        finally:
            copy_into(own, kept)


class Average:
    """An exponential moving average of the trained parameters, by iteration."""

    def __init__(self, trained: Trained, decay: float) -> None:
        self.trained = trained
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in trained.parameters().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the present weights; a decay of 0 makes it these."""
        for name, value in self.trained.parameters().items():
            self.values[name].lerp_(value, 1 - self.decay)
