"""The transformer's steps as compiled graphs; on CUDA each number of rows is one CUDA graph.

The compiler is given a block of each kind, and not the whole: all blocks of a kind are one graph,
for any number of rows (models/joined.py). What it makes lies in TORCHINDUCTOR_CACHE_DIR, and is
found there by the next process. A CUDA graph is for one shape and one version's weights, and is
recorded from these in a moment. Images come and go, so rows are filled up to the next power of two
with whatever was there before. What lives inside a step only, all CUDA graphs share.

Shape letters: R rows, H W token grid.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cogrpo_core.models.joined import JoinedSteps
from cogrpo_core.models.transformer import Conditioning, MeissonicTransformer, States

MAX_GRAPHS = 64
"""Of a process: kinds of pieces times sizes of pictures, one row or several."""

_recording = threading.Lock()


def bucket(rows: int) -> int:
    """The next power of two."""
    return 1 << (rows - 1).bit_length()


def compile_steps(transformer: MeissonicTransformer, *, backend: Any = "inductor") -> None:
    """Makes `states` of this transformer, and so `hidden_at`, run as compiled graphs, in place.

    Graphs are made when a bucket is first met (`warm_up` does it ahead) from the weights of that
    moment. For inference only; results are equal to rounding. Any thread may call it.
    """
    if transformer.fixed_shapes:
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    vars(transformer).update(states=_Steps(transformer, backend), fixed_shapes=True)


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


class _Steps:
    """In place of a transformer's `states`; a copy of the transformer gets one of its own."""

    def __init__(self, transformer: MeissonicTransformer, backend: Any) -> None:
        self._transformer, self._backend = transformer, backend
        self._joined: JoinedSteps | None = None
        self._fixed: dict[tuple[int, ...], _FixedRows] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Steps":
        return _Steps(memo[id(self._transformer)], self._backend)

    # So graphs, and the memory that they keep, are the same for whoever calls first.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        token_ids: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        rope: Tensor | None = None,
    ) -> States:
        rows, *grid = token_ids.shape
        length = conditioning.text.shape[1]
        key = (bucket(rows), *grid, length)
        if key not in self._fixed:
            with _recording:
                if self._joined is None:
                    self._joined = JoinedSteps(self._transformer, self._compile)
                if key not in self._fixed:
                    self._fixed[key] = _FixedRows(self._joined, *key)
        return self._fixed[key](token_ids, timestep, conditioning)

    def _compile(self, piece: Callable[..., Any]) -> Callable[..., Any]:
        return _compiled(piece, self._backend)


@cache
def _compiled(piece: Callable[..., Any], backend: Any) -> Callable[..., Any]:
    """The same graphs for all versions."""
    made: Callable[..., Any] = torch.compile(piece, fullgraph=True, backend=backend)
    return made


class _FixedRows:
    """The step of R rows, whose inputs and results lie in the same memory each time."""

    def __init__(self, steps: JoinedSteps, rows: int, height: int, width: int, length: int) -> None:
        model = steps.transformer
        weight = model.project_to_hidden.weight
        dim, mask = model.config.dim, model.config.mask_token_id
        self._token_ids = torch.full((rows, height, width), mask, device=weight.device)
        self._timestep = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self._conditioning = Conditioning(
            text=weight.new_zeros(rows, length, dim), pooled=weight.new_zeros(rows, dim)
        )
        rope = model.rope(length, height, width)
        inputs = (self._token_ids, self._timestep, self._conditioning, rope)
        self._run = _recorded(lambda: steps(*inputs), weight.device)
        self._lock = threading.Lock()

    def __call__(self, token_ids: Tensor, timestep: Tensor, conditioning: Conditioning) -> States:
        rows = len(token_ids)
        with self._lock:
            self._token_ids[:rows].copy_(token_ids)
            self._timestep[:rows].copy_(timestep)
            self._conditioning.text[:rows].copy_(conditioning.text)
            self._conditioning.pooled[:rows].copy_(conditioning.pooled)
            found = self._run()
        return States(hidden=found.hidden[:rows], features=found.features[:rows])


def _recorded(run: Callable[[], States], device: torch.device) -> Callable[[], States]:
    """`run` as a CUDA graph that gives copies of its results; on a CPU as it is."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()  # compiles, and sets up what a first call sets up
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate meanwhile: only what this one does must fit into a graph.
    with torch.cuda.graph(graph, pool=_shared_memory(), capture_error_mode="thread_local"):
        found = run()

    def replay() -> States:
        graph.replay()
        return States(hidden=found.hidden.clone(), features=found.features.clone())

    return replay


@cache
def _shared_memory() -> Any:
    """Of all CUDA graphs: they run one after the other."""
    return torch.cuda.graph_pool_handle()
