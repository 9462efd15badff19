"""The learners that share a batch: one process, or several that Ray Train started.

Data-parallel by default, every learner with all weights; or sharded (FSDP2), each with a part.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cogrpo_core.models.transformer import MeissonicTransformer


@dataclass(frozen=True)
class Fleet:
    """This learner's place among all of them."""

    rank: int = 0
    world: int = 1

    def sum(self, value: float) -> float:
        """The sum of a number over all learners."""
        return self._reduced(value, distributed.ReduceOp.SUM)

    def max(self, value: int) -> int:
        """The largest of all learners' numbers."""
        return int(self._reduced(float(value), distributed.ReduceOp.MAX))

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all learners; sharded weights do it alone."""
        sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        return module if self.world == 1 or sharded else DistributedDataParallel(module)

    def _reduced(self, value: float, operation: distributed.ReduceOp.RedOpType) -> float:
        if self.world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            total = total.cuda()
        distributed.all_reduce(total, operation)
        return float(total)


def without_sync(module: nn.Module, skip: bool) -> AbstractContextManager[None]:
    """Gradients stay local while `skip`: of accumulated passes only the last is averaged."""
    if skip and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def shard(transformer: MeissonicTransformer) -> None:
    """Splits the weights over all learners, block by block, in place (FSDP2)."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        fully_shard(block)
    fully_shard(transformer)
    transformer.sharded = True
    # What sampler and learner call; each gathers the weights outside of the blocks.
    for name in ("condition", "states", "hidden_at", "head", "token_logprob"):
        register_fsdp_forward_method(transformer, name)
