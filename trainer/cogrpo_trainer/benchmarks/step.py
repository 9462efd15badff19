"""How long a guided denoising step and a whole picture take on this machine (`make bench`)."""

import itertools
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer

from cogrpo_core.cli import torch_type
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_trainer.benchmarks.interleave import synchronize
from cogrpo_trainer.benchmarks.random_model import PREFIX
from cogrpo_trainer.device import torch_threads

PROMPT = "a red circle left of a blue square"


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats, in milliseconds, of one picture at a time."""

    threads: int
    step_ms: float
    """One step: the guided forward pass, the draw and the re-mask."""
    picture_ms: float
    """From prompt to pixels: text, all steps, decoding."""


def time_pictures(
    pipe: CoGRPOPipeline, *, prompt: str, steps: int, threads: int, repeats: int
) -> Timing:
    """Times `repeats` pictures, after one that warms up, on `threads` threads of torch.

    The first step of each picture is left out of the steps' median: a callback marks where a step
    ends, so its beginning is not known.
    """
    step_ms: list[float] = []
    picture_ms: list[float] = []
    with torch_threads(threads):
        for repeat in range(repeats + 1):
            ends: list[float] = []

            def mark(*_: Any, ends: list[float] = ends) -> None:
                synchronize(pipe.device)
                ends.append(time.perf_counter())

            start = time.perf_counter()
            pipe(prompt, num_inference_steps=steps, seed=repeat, callback_on_step_end=mark)
            stop = time.perf_counter()
            if repeat > 0:
                step_ms += [1000 * (end - begin) for begin, end in itertools.pairwise(ends)]
                picture_ms.append(1000 * (stop - start))
    return Timing(threads, statistics.median(step_ms), statistics.median(picture_ms))


def main(
    model: Annotated[str, typer.Option(help="A folder, Hub id, `shapes`, random:1b.")] = "shapes",
    prompt: Annotated[str, typer.Option(help="What the pictures show.")] = PROMPT,
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Steps a picture.")] = 16,
    threads: Annotated[list[int], typer.Option(min=1, help="Repeat it for several.")] = [1, 2],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1, help="Pictures a thread count.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    batches: Annotated[list[int], typer.Option(min=1, help="Pictures at once (random:...).")] = [  # noqa: B006
        1,
        4,
        8,
    ],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16 (random:...).")] = "bfloat16",
    eager: Annotated[bool, typer.Option(help="Also without compiling (random:...).")] = True,
) -> None:
    """Time a guided denoising step and a picture of a checkpoint.

    With `--model random:1b` the weights are random, and the step is timed eager and compiled for
    several numbers of pictures, as shares of the device's matrix-product rate.
    """
    if model.startswith(PREFIX):
        _time_turns(model, device, batches, dtype, repeats, eager)
        return
    try:
        pipe = CoGRPOPipeline.from_pretrained(model, device=device)
        timings = [
            time_pictures(pipe, prompt=prompt, steps=steps, threads=count, repeats=repeats)
            for count in threads
        ]
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if as_json:
        facts = {"model": model, "device": device, "steps": steps, "repeats": repeats}
        print(json.dumps(facts | {"timings": [asdict(timing) for timing in timings]}))
        return
    print(f"{model}, {steps} steps, median of {repeats} pictures, {device}")
    print("threads  ms a step  ms a picture")
    for timing in timings:
        print(f"{timing.threads:7d}  {timing.step_ms:9.1f}  {timing.picture_ms:12.1f}")


def _time_turns(
    model: str, device: str, batches: list[int], dtype: str, repeats: int, eager: bool
) -> None:
    from cogrpo_trainer.benchmarks.turns import measure_turns

    try:
        found = measure_turns(
            model,
            device=torch.device(device),
            dtype=torch_type(dtype),
            batches=batches,
            rounds=repeats,
            eager=eager,
            progress=lambda found: print(json.dumps(found), file=sys.stderr, flush=True),
        )
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)
