"""The transformer's steps as compiled graphs, for a few numbers of rows; on CUDA as CUDA graphs.

A graph is for one shape. Images come and go, so rows are filled up to the next power of two with
copies of the last one. What the compiler makes lies in TORCHINDUCTOR_CACHE_DIR, and is found there
by the next process and by the next version of the weights.

Shape letters: R rows, H W token grid.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from cogrpo_core.ahead import on_device
from cogrpo_core.models.transformer import Conditioning, MeissonicTransformer, States

MAX_GRAPHS = 64
"""Of a process: buckets times sizes of pictures, conditional pass alone or not."""


def bucket(rows: int) -> int:
    """The next power of two."""
    return 1 << (rows - 1).bit_length()


def compile_steps(transformer: MeissonicTransformer, *, backend: Any = "inductor") -> None:
    """Makes `states` of this transformer, and so `hidden_at`, run as compiled graphs, in place.

    Graphs are made when a bucket is first met (`warm_up` does it ahead), and shared by transformers
    of one shape. For inference only; results are equal to rounding.
    """
    if transformer.fixed_shapes:
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    device = transformer.project_to_hidden.weight.device
    mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
    graph = torch.compile(
        MeissonicTransformer.states, fullgraph=True, dynamic=False, backend=backend, mode=mode
    )

    def states(
        self: MeissonicTransformer,
        token_ids: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        rope: Tensor | None = None,
    ) -> States:
        rows = len(token_ids)
        if rope is None:
            rope = self.rope(conditioning.text.shape[1], *token_ids.shape[1:])
        full = bucket(rows)
        if full > rows:
            index = on_device([min(row, rows - 1) for row in range(full)], device)
            token_ids, timestep = token_ids[index], timestep[index]
            conditioning = conditioning.select(index)
        torch.compiler.cudagraph_mark_step_begin()
        found: States = graph(self, token_ids, timestep, conditioning, rope)
        return States(hidden=found.hidden[:rows], features=found.features[:rows])

    # A method, so that a copy of the transformer runs with its own weights.
    vars(transformer).update(states=MethodType(states, transformer), fixed_shapes=True)


@torch.no_grad()
def warm_up(
    transformer: MeissonicTransformer,
    conditioning: Conditioning,
    grid: tuple[int, int],
    max_rows: int,
) -> None:
    """Makes the graphs of all buckets up to that of `max_rows`, for a conditioning of one row."""
    device = conditioning.text.device
    rows = 1
    while rows <= bucket(max_rows):
        index = torch.zeros(rows, dtype=torch.long, device=device)
        masks = torch.full((rows, *grid), transformer.config.mask_token_id, device=device)
        transformer.states(masks, index, conditioning.select(index))
        rows *= 2
