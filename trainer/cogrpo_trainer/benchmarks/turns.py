"""One guided step of a model with random weights: how long, how near to the matrix-product rate.

Eager, as CUDA graphs of torch's own kernels, and compiled (compiled.py), for several numbers of
pictures. The step is one in the middle of 48: the forward passes, guidance, head, draw and re-mask,
but not text or decoding.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cogrpo_core.ahead import Ahead, course, look_ahead
from cogrpo_core.compiled import compile_steps
from cogrpo_core.denoise import Samples, Turn, denoise_turn, start_samples
from cogrpo_core.models.transformer import Conditioning
from cogrpo_core.schedule import build_schedule
from cogrpo_trainer.benchmarks.interleave import Timed, synchronize, timed
from cogrpo_trainer.benchmarks.profiles import profile
from cogrpo_trainer.benchmarks.random_model import (
    RandomModel,
    head_operations,
    pass_operations,
    random_model,
)
from cogrpo_trainer.benchmarks.rates import device_rates

STEPS = 48
MIDDLE = 24


class Case:
    """`count` pictures before step 24 of 48, with guidance."""

    def __init__(self, made: RandomModel, count: int) -> None:
        self.made, self.count = made, count
        self.model, self.grid = made.transformer, made.grid
        self.conditions = made.conditions(count)
        tokens = self.grid[0] * self.grid[1]
        table = build_schedule("meissonic", STEPS, guidance_scale=9.0).actions_T4
        each = course(table, tokens)
        self.masked = each.masked[MIDDLE]
        self.ahead: Ahead = look_ahead([each] * count, [MIDDLE] * count)
        self.samples = self._samples(table, tokens)

    def _samples(self, table: Tensor, tokens: int) -> Samples:
        config, device = self.model.config, self.conditions[0].text.device
        samples = start_samples(
            list(range(self.count)),
            [table] * self.count,
            tokens,
            config.mask_token_id,
            device=device,
        )
        known = torch.randint(0, config.codebook_size, (self.count, tokens), device=device)
        order = torch.rand(self.count, tokens, device=device).argsort(dim=1)
        samples.tokens_BN.copy_(known.masked_fill(order < self.masked, config.mask_token_id))
        samples.step_B.fill_(MIDDLE)
        return samples

    def turn(self) -> Turn:
        """The step."""
        return denoise_turn(self.model, self.samples, *self.conditions, self.ahead, grid=self.grid)

    @torch.no_grad()
    def states(self) -> Tensor:
        """Both passes alone."""
        both = Conditioning.cat(list(self.conditions))
        rows = torch.arange(self.count, device=both.text.device).repeat(2)
        tokens = self.samples.tokens_BN[rows].unflatten(1, self.grid)
        remaining = (self.samples.num_steps_B - 1 - self.samples.step_B)[rows]
        return self.model.states(tokens, remaining, both).hidden

    def operations(self, *, joined: bool) -> dict[str, int]:
        """Of the products in `turn` and `states`."""
        config = self.model.config
        passes = 2 * self.count * pass_operations(config, self.grid, joined=joined)
        return {
            "states": passes,
            "turn": passes + self.count * head_operations(config, self.masked),
        }


def measure_turns(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batches: Sequence[int],
    rounds: int,
    eager: bool = True,
    progress: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Times, rates, waits of the host, compile time and profiles; failures are named in place.

    `progress` is given what there is after each part.
    """
    made = random_model(name, device, dtype)
    synchronize()
    found: dict[str, Any] = {"model": name, "dtype": str(dtype), "make_seconds": made.seconds}
    rates = device_rates(device, rounds)
    found["device"] = rates
    cases = {count: Case(made, count) for count in batches}
    found["masked"] = next(iter(cases.values())).masked
    plain: dict[int, Tensor] = {}
    if eager:
        found["eager"] = _measured(cases, rounds, rates, joined=False)
        plain = {count: case.states().float() for count, case in cases.items() if count == 1}
        progress(found)
    for way, backend in (("graphed", as_it_is), ("compiled", "inductor")):
        found[way] = attempt(partial(_compiled, made, cases, backend, rounds, rates, plain))
        progress(found)
    found["host_waits"] = {
        count: attempt(partial(host_waits, case.turn)) for count, case in cases.items()
    }
    found["attention"] = attempt(lambda: _attention(cases, rounds))
    progress(found)
    found["profile"] = {
        count: attempt(partial(profile, cases[count].turn, device))
        for count in (batches[0], batches[-1])
    }
    return found


def as_it_is(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
    """A compiler that makes no kernels: CUDA graphs of torch's own remain."""
    return graph.forward


def _compiled(
    made: RandomModel,
    cases: Mapping[int, Case],
    backend: Any,
    rounds: int,
    rates: Mapping[str, Any],
    plain: Mapping[int, Tensor],
) -> dict[str, Any]:
    """The same compiled by `backend`; `first` is the seconds of each number of pictures' first
    step, and `gap` the largest difference from plain states, over their spread.
    """
    transformer = copy(made.transformer)
    compile_steps(transformer, backend=backend)
    first = {}
    for count, case in cases.items():
        case.model = transformer
        began = time.perf_counter()
        case.turn()
        synchronize()
        first[count] = time.perf_counter() - began
    found: dict[str, Any] = {"first": first}
    found |= _measured(cases, rounds, rates, joined=True)
    found["gap"] = {
        count: float((cases[count].states().float() - hidden).abs().max() / hidden.std())
        for count, hidden in plain.items()
    }
    return found


def _measured(
    cases: Mapping[int, Case], rounds: int, rates: Mapping[str, Any], *, joined: bool
) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for count, case in cases.items():
        times = timed({"turn": case.turn, "states": case.states}, rounds, at_least=0.05)
        found[count] = _rates(times, case.operations(joined=joined), rates)
    return found


def _rates(times: Timed, operations: Mapping[str, int], rates: Mapping[str, float]) -> Any:
    found = {}
    for part, done in operations.items():
        each = times.wall[part]
        per_second = done / times.seconds[part]["wall"]
        found[part] = {
            "seconds": times.seconds[part]["wall"],
            "lowest": min(each),
            "highest": max(each),
            "flops_per_second": per_second,
            "share_of_matmul": per_second / rates["matmul_flops_per_second"],
        }
    return found


def host_waits(run: Callable[[], object]) -> str:
    """ "none" where the host waits for the GPU nowhere in `run`, else where."""
    if not torch.cuda.is_available():
        return "no GPU"
    run()
    synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        return f"waits: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def attempt(part: Callable[[], Any]) -> Any:
    """What the part gives; where it fails, the error in one line, so that the rest counts."""
    try:
        return part()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]


def _attention(cases: Mapping[int, Case], rounds: int) -> dict[int, Any]:
    """Seconds of one block's attention by torch's backends."""
    found: dict[int, Any] = {}
    for count, case in cases.items():
        config, text = case.model.config, case.conditions[0].text
        cells = case.grid[0] * case.grid[1] // (4 if config.downsample else 1)
        positions = text.shape[1] + cells
        shape = (2 * count, positions, 3, config.num_attention_heads, config.attention_head_dim)
        q, k, v = torch.randn(shape, device=text.device, dtype=text.dtype).transpose(1, 3).unbind(2)
        found[count] = {}
        for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
            found[count][name] = attempt(partial(_by, name, q, k, v, rounds))
    return found


def _by(name: str, q: Tensor, k: Tensor, v: Tensor, rounds: int) -> float:
    with sdpa_kernel(getattr(SDPBackend, name)):
        run = {name: lambda: F.scaled_dot_product_attention(q, k, v)}
        return timed(run, rounds, at_least=0.01).seconds[name]["wall"]
