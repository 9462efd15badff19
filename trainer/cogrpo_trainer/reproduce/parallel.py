"""Makes what items need on several processes at once: trainings and searches, then measures.

All that they make are files, which `Laboratory` finds afterwards; so this too is resumable.
"""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path
from threading import Thread

from cogrpo_trainer.reproduce.execute import Budget, Laboratory
from cogrpo_trainer.reproduce.plan import BEST_CONSTANT, BEST_STATIC, UNTRAINED, Item, Measure

SEARCHED = (BEST_CONSTANT, BEST_STATIC)


def prepare(
    folder: Path, budget: Budget, items: Iterable[Item], jobs: int, say: Callable[[str], None]
) -> None:
    """Trains, searches and measures all that the items need and the folder lacks, `jobs` at a time.

    Raises what a job raised; the others are stopped, and go on from their files the next time. They
    end when this process is killed, too.
    """
    needed = {measure for item in items for row in item.rows.values() for measure in row}
    laboratory = Laboratory(folder, budget)
    measures = {measure for measure in needed if laboratory.saved(measure) is None}
    cycles: dict[tuple[str, int], int] = {}
    for m in measures:
        if m.model not in UNTRAINED:
            cycles[m.model, m.seed] = max(m.cycle, cycles.get((m.model, m.seed), 0))
    first: list[tuple[str, Measure]] = [
        ("train", Measure(run, seed, cycle)) for (run, seed), cycle in sorted(cycles.items())
    ]
    first += [("search", m) for m in sorted(measures) if m.schedule in SEARCHED]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=_start, initargs=(folder, budget, threads)
    ) as pool:
        for batch in (first, [("measure", m) for m in sorted(measures)]):
            futures = {pool.submit(_do, *job): job for job in batch}
            try:
                for number, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    kind, measure = futures[future]
                    say(f"{number} of {len(futures)}: {kind} {measure.key}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in active_children():
                    worker.terminate()
                raise


_laboratory: Laboratory
"""Of this process."""


def _start(folder: Path, budget: Budget, threads: int) -> None:
    global _laboratory
    import torch

    end_with_parent()
    torch.set_num_threads(threads)
    _laboratory = Laboratory(folder, budget)


def end_with_parent() -> None:
    """Ends this process when its parent is gone: a pool's workers would go on with what is left."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _do(kind: str, measure: Measure) -> None:
    if kind == "train":
        _laboratory.train(measure.model, measure.seed, measure.cycle)
    elif kind == "search":
        _laboratory.schedule(measure)
    else:
        _laboratory.scores(measure)
