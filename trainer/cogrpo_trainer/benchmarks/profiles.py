"""Where a GPU's time goes, by kind of kernel, from torch's profiler."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType

from cogrpo_trainer.benchmarks.interleave import synchronize

KINDS = (
    # The first kind one of whose words is in a kernel's name takes it.
    ("attention", ("flash", "fmha", "sdpa", "attention")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "matmul", "splitk", "mm_kernel", "xmma")),
    ("draw and re-mask", ("sample_kernel", "fill_kernel", "noise_kernel")),
    ("compiled elementwise", ("triton_",)),
    ("copies", ("memcpy", "memset", "copy_kernel", "catarray")),
    ("other elementwise", ("elementwise", "index", "gather", "scan", "reduce", "flagged", "cub")),
)
RUNS = 3
LONGEST = 12


def kind_of(kernel: str) -> str:
    """Of a kernel, by its name."""
    name = kernel.lower()
    for kind, words in KINDS:
        if any(word in name for word in words):
            return kind
    return "other"


def profile(run: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Shares of the kernels' time by kind and of the longest, and the share of time without one."""
    if device.type != "cuda":
        return {}
    run()
    synchronize()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as found:
        for _ in range(RUNS):
            run()
        synchronize()
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    spans: list[tuple[float, float]] = []
    for event in found.events():
        if event.device_type != DeviceType.CUDA:
            continue
        span = event.time_range
        length = span.end - span.start
        kinds[kind_of(event.name)] += length
        names[event.name] += length
        calls[event.name] += 1
        spans.append((span.start, span.end))
    total = sum(kinds.values()) or 1.0
    window = max((end for _, end in spans), default=0) - min((b for b, _ in spans), default=0)
    return {
        "milliseconds": total / RUNS / 1000,
        "kernels": sum(calls.values()) / RUNS,
        "idle": 1 - total / window if window else 0.0,
        "kinds": {kind: time / total for kind, time in kinds.most_common()},
        "longest": [
            {"kernel": name[:100], "share": time / total, "calls": calls[name] / RUNS}
            for name, time in names.most_common(LONGEST)
        ],
    }
