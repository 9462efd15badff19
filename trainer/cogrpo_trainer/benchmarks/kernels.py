"""Each op of cogrpo_core/kernels against its plain form, its compiled definition and the device.

On a GPU calls queue up, so that a time is the device's unless launching takes longer; what needs no
gradient is timed as a CUDA graph too, `own`, which leaves the launching out. Shape letters as in
kernels/ops.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from cogrpo_core.kernels import ops, pointwise, remask, sample
from cogrpo_core.kernels.remask import Filled
from cogrpo_core.noise import step_noise
from cogrpo_trainer.benchmarks.interleave import Timed, peak_bytes, replayed, timed
from cogrpo_trainer.benchmarks.rates import device_rates

SIZES = {
    # Rows of logits, codes, width; samples and tokens of a step; positions of a layer.
    "cpu": {"rows": 341, "codes": 2048, "dim": 192, "samples": 8, "tokens": 256, "positions": 112},
    # Four pictures' first step. 8 samples do not fill a GPU, `many` do.
    "cuda": {"rows": 16384, "codes": 8192, "dim": 1024, "samples": 8, "tokens": 4096, "many": 2048},
}
"""Those of the embedded model in training and sampling, and of Meissonic's 1B."""
AT_LEAST = 0.005
"""Seconds of one measurement on a GPU."""
COLD = 0.2
"""A sampling temperature as learned schedules choose it. Logits of the size here then have weights
below 1e-38, which slow a CPU down."""


@dataclass(frozen=True)
class Case:
    """An op, its plain form, and the bytes that it must read and write at least."""

    op: Callable[[], object]
    definition: Callable[[], object]
    traffic: int
    gradient: bool = False
    launches: dict[str, Callable[[int], dict[str, Any]]] = field(default_factory=dict)
    """Other launches that one may think of, by name, to put in place of `tile`."""
    tile: str = ""
    """The module whose `tile` decides."""


def compare_kernels(
    device: torch.device, *, rounds: int, compiled: bool, tune: bool = False
) -> dict[str, Any]:
    """The device's copy bandwidth and matmul rate, and each op: times, ratios, share of bandwidth.

    `eager` is the definition under torch as it is, `compiled` under torch.compile, which on a CPU
    needs a C++ compiler. Memory is the peak of one call. With `tune`, on a GPU, other launches too.
    """
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    size = SIZES["cuda" if on_gpu else "cpu"]
    rates = device_rates(device, rounds)
    found: dict[str, Any] = {"device": rates, "ops": {}}
    if on_gpu:
        one = torch.zeros(1, device=device)
        launch = replayed(lambda: one.add_(1))
        found["empty_launch"] = timed({"": launch}, rounds, at_least=AT_LEAST).seconds[""]["wall"]
    bandwidth = float(rates["copy_bytes_per_second"])
    for name, case in _cases(device, size):
        variants = {"eager": case.definition, "cogrpo": case.op}
        if compiled:
            variants["compiled"] = torch.compile(case.definition, dynamic=False)
        if on_gpu and not case.gradient:
            variants["own"] = replayed(case.op)
        times = timed(variants, rounds, at_least=AT_LEAST if on_gpu else 0.0)
        found["ops"][name] = _row(times, case, bandwidth, device)
        if tune and on_gpu and case.launches:
            found["ops"][name]["launches"] = _tuned(case, rounds)
    return found


def _row(times: Timed, case: Case, bandwidth: float, device: torch.device) -> dict[str, Any]:
    seconds = times.seconds
    own = "own" if "own" in seconds else "cogrpo"
    others = [name for name in seconds if name not in ("cogrpo", "own")]
    return {
        "seconds": seconds,
        "faster": {name: times.ratio(name, own) for name in others},
        "share_of_copy_bandwidth": case.traffic / seconds[own]["wall"] / bandwidth,
        "peak_bytes": {
            "eager": peak_bytes(case.definition, device),
            "cogrpo": peak_bytes(case.op, device),
        },
    }


def _tuned(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of each launch, the shortest first; one that fails is named with its error."""
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name, tile in case.launches.items():
        with patch(case.tile + ".tile", tile):
            try:
                run = case.op if case.gradient else replayed(case.op)
                found[name] = timed({"": run}, rounds, at_least=AT_LEAST).seconds[""]["wall"]
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"[:200]
    return dict(sorted(found.items(), key=lambda each: each[1])) | failed


def _cases(device: torch.device, size: dict[str, int]) -> Iterator[tuple[str, Case]]:
    """One after the other, so that only one case's tensors are held."""
    on_gpu = device.type == "cuda"
    samples, tokens = size["samples"], size["tokens"]
    yield "step_noise", _noise(device, samples, tokens)
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        kind = "" if dtype == torch.float32 else ", bfloat16"
        yield "sample_tokens" + kind, _draw(device, size["rows"], size["codes"], dtype)
    yield "fill_surest", _fill(device, samples, tokens, size["codes"])
    if on_gpu:
        yield (
            f"fill_surest, {size['many']} samples",
            _fill(device, size["many"], tokens, size["codes"]),
        )
    dtype = torch.bfloat16 if on_gpu else torch.float32
    yield (
        "token_logprob, forward and backward",
        _logprob(device, size["rows"], size["codes"], dtype),
    )
    yield "linear_token_logprob, forward and backward", _linear(device, size, dtype)
    if not on_gpu:  # elsewhere the definition is what runs
        yield from _cold(device, size)
        yield from _layers(device, size)


def _noise(device: torch.device, samples: int, tokens: int) -> Case:
    seed, step = (torch.arange(samples, device=device) for _ in range(2))
    return Case(
        lambda: ops.step_noise(seed, step, tokens),
        lambda: step_noise(seed, step, tokens),
        8 * samples * tokens,
    )


def _draw(device: torch.device, rows: int, codes: int, dtype: torch.dtype) -> Case:
    logits = (3 * torch.randn(rows, codes, device=device)).to(dtype)
    tau, uniform = torch.ones(rows, device=device), torch.rand(rows, device=device)
    padded = 1 << (codes - 1).bit_length()
    return Case(
        lambda: ops.sample_tokens(logits, tau, uniform),
        lambda: sample.sample_tokens(logits, tau, uniform),
        logits.nbytes + 24 * rows,
        launches={
            f"{warps} warps, {blocks} blocks": lambda _, warps=warps, blocks=blocks: {  # type: ignore[misc]
                "BLOCKS": blocks,
                "BLOCK": padded // blocks,
                "num_warps": warps,
            }
            for warps, blocks in ((4, 8), (8, 8), (4, 64), (8, 64), (16, 64))
            if blocks < padded
        },
        tile="cogrpo_core.kernels.sample_triton",
    )


def _fill(device: torch.device, samples: int, tokens: int, codes: int) -> Case:
    shape = (samples, tokens)
    masked = torch.rand(shape, device=device) < 0.6
    count = int(masked.sum())
    known = Filled(
        torch.where(masked, codes, 0),
        torch.zeros(shape, dtype=torch.int64, device=device),
        torch.zeros(shape, device=device),
    )
    drawn = torch.randint(0, codes, (count,), device=device)
    draw = sample.Draw(drawn, *torch.randn(2, count, device=device))
    chance = (
        torch.randn(shape, device=device),
        torch.ones(samples, device=device),
        masked.sum(dim=1) // 2,
        torch.arange(samples, device=device),
    )
    old = sum(column.nbytes for column in known)
    traffic = 2 * old + masked.nbytes + chance[0].nbytes + 16 * count
    padded = 1 << (tokens - 1).bit_length()
    return Case(
        lambda: ops.fill_surest(known, masked, draw, *chance),
        lambda: remask.fill_surest(known, masked, draw, *chance),
        traffic,
        launches={
            f"{warps} warps, parts of {part}": lambda _, warps=warps, part=part: {  # type: ignore[misc]
                "BLOCK": padded,
                "PART": part,
                "num_warps": warps,
                "enable_fp_fusion": False,
            }
            for warps, part in ((4, 512), (4, 1024), (8, 512), (8, 1024), (8, 2048), (16, 2048))
        },
        tile="cogrpo_core.kernels.remask_triton",
    )


def _both(op: Callable[..., Tensor], *leaves: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(op(*leaves).sum(), leaves)


def _logprob(
    device: torch.device, rows: int, codes: int, dtype: torch.dtype, temperature: float = 1.0
) -> Case:
    logits = (3 * torch.randn(rows, codes, device=device)).to(dtype).requires_grad_()
    tau = torch.full((rows,), temperature, device=device)
    token = torch.randint(0, codes, (rows,), device=device)

    def plain(logits: Tensor) -> Tensor:
        tempered = logits.float() / tau[:, None]
        return tempered.log_softmax(dim=1).gather(1, token[:, None])[:, 0]

    return Case(
        _both(lambda x: ops.token_logprob(x, tau, token), logits),
        _both(plain, logits),
        3 * logits.nbytes,
        gradient=True,
        launches={
            f"{warps} warps, {block} codes": lambda _, warps=warps, block=block: {  # type: ignore[misc]
                "BLOCK": block,
                "num_warps": warps,
            }
            for warps, block in ((4, 2048), (4, 4096), (8, 4096), (8, 8192))
        },
        tile="cogrpo_core.kernels.logprob_triton",
    )


def _linear(device: torch.device, size: dict[str, int], dtype: torch.dtype) -> Case:
    rows, codes, dim = size["rows"], size["codes"], size["dim"]
    tau = torch.ones(rows, device=device)
    token = torch.randint(0, codes, (rows,), device=device)
    weight = (0.05 * torch.randn(codes, dim, device=device)).to(dtype).requires_grad_()
    states = torch.randn(rows, dim, device=device, dtype=dtype, requires_grad=True)

    def plain(states: Tensor, weight: Tensor) -> Tensor:
        tempered = (states @ weight.t()).float() / tau[:, None]
        return tempered.log_softmax(dim=1).gather(1, token[:, None])[:, 0]

    def fused(states: Tensor, weight: Tensor) -> Tensor:
        return ops.linear_token_logprob(states, weight, tau, token)

    traffic = 2 * states.nbytes + 3 * weight.nbytes
    return Case(_both(fused, states, weight), _both(plain, states, weight), traffic, gradient=True)


def _cold(device: torch.device, size: dict[str, int]) -> Iterator[tuple[str, Case]]:
    """At a low temperature, against torch's own operations, which know no floor."""
    rows, codes = size["rows"], size["codes"]
    logits = 3 * torch.randn(rows, codes, device=device)
    tau, uniform = torch.full((rows,), COLD, device=device), torch.rand(rows, device=device)

    def plain() -> tuple[Tensor, ...]:
        tempered = logits / tau[:, None]
        token = tempered.softmax(dim=1).multinomial(1)
        return token, *(each.log_softmax(dim=1).gather(1, token) for each in (tempered, logits))

    yield (
        f"sample_tokens, temperature {COLD}",
        Case(lambda: ops.sample_tokens(logits, tau, uniform), plain, logits.nbytes + 24 * rows),
    )
    yield (
        f"token_logprob, temperature {COLD}, forward and backward",
        _logprob(device, rows, codes, torch.float32, COLD),
    )


def _layers(device: torch.device, size: dict[str, int]) -> Iterator[tuple[str, Case]]:
    samples, positions, dim = size["samples"], size["positions"], size["dim"]
    x = torch.randn(samples, positions, dim, device=device, requires_grad=True)
    shift, scale = (torch.randn(samples, 1, dim, device=device, requires_grad=True) for _ in "ab")
    wide = torch.randn(samples, positions, 4 * dim, device=device, requires_grad=True)
    yield (
        "modulate, forward and backward",
        Case(
            _both(ops.modulate, x, shift, scale),
            _both(pointwise.modulate, x, shift, scale),
            5 * x.nbytes,
            gradient=True,
        ),
    )
    yield (
        "gelu, forward and backward",
        Case(_both(ops.gelu, wide), _both(pointwise.gelu, wide), 5 * wide.nbytes, gradient=True),
    )
