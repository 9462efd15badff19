"""Times variants of one computation in turn, so that what else the machine does meets all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

TRIED, MOST_CALLS = 3, 1000


@dataclass(frozen=True)
class Timed:
    """What was measured of some variants."""

    wall: dict[str, list[float]]
    """Seconds of each variant by round."""
    cpu: dict[str, list[float]]
    """Seconds that the process's threads ran: neighbours on the machine hardly change them."""

    @property
    def seconds(self) -> dict[str, dict[str, float]]:
        """Medians over the rounds, of each variant, by the wall clock and by processor time."""
        return {
            name: {"wall": statistics.median(each), "cpu": statistics.median(self.cpu[name])}
            for name, each in self.wall.items()
        }

    def ratio(self, slow: str, fast: str) -> dict[str, dict[str, float]]:
        """How many times `fast` is faster, taken within each round: median, lowest, highest."""
        found = {}
        for clock, rounds in (("wall", self.wall), ("cpu", self.cpu)):
            ratios = [a / b for a, b in zip(rounds[slow], rounds[fast], strict=True)]
            found[clock] = {
                "median": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        return found


def timed(
    variants: Mapping[str, Callable[[], object]], rounds: int, *, at_least: float = 0.0
) -> Timed:
    """Every variant once to warm up and then once a round, every other round in reverse order.

    What takes less than `at_least` seconds is called again and again for so long, and its time is
    the mean: on a GPU calls queue up, and the time is the device's unless launching takes longer.
    """
    for run in variants.values():
        run()
    calls = {name: _calls(run, at_least) for name, run in variants.items()}
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        names = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in names:
            synchronize()
            began, began_cpu = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                variants[name]()
            synchronize()
            wall[name].append((time.perf_counter() - began) / calls[name])
            cpu[name].append((time.process_time() - began_cpu) / calls[name])
    return Timed(wall, cpu)


def _calls(run: Callable[[], object], at_least: float) -> int:
    if not at_least:
        return 1
    synchronize()
    began = time.perf_counter()
    for _ in range(TRIED):
        run()
    synchronize()
    return max(1, min(MOST_CALLS, round(TRIED * at_least / (time.perf_counter() - began))))


def synchronize(device: torch.device | None = None) -> None:
    """Waits for what a GPU, the present one by default, still has to do; a CPU's work is done when
    its call returns."""
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        torch.cuda.synchronize(device)


def replayed(run: Callable[[], object]) -> Callable[[], object]:
    """`run` as a CUDA graph, so that only the device's time is left. It must wait for nothing."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory of torch tensors that a run holds at once, beyond what was held before.

    On a CPU torch's profiler reports every allocation and release. Unlike a process's resident
    memory this leaves out the interpreter, the libraries and what the allocator keeps for later, so
    it is the same on a busy machine, and needs no process of its own.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        run()
    now = highest = 0
    assert profile.profiler is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return highest
