"""`cogrpo bench kernels | sampler | learner | decode | signal | check`; torch loads in a run."""

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cogrpo_core.allocator import restart_with_allocator
from cogrpo_core.cli import torch_type

Model = Annotated[
    str, typer.Option(help="A folder, a Hub id, `shapes`, or random:1b for random weights.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Of torch; all cores by default.")]
Rounds = Annotated[int, typer.Option(min=1, help="Of all variants, one after the other.")]
Steps = Annotated[int, typer.Option(min=2, max=256, help="Steps a picture.")]
Images = Annotated[int, typer.Option(min=1, help="Pictures.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16 (random:...).")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]

RANDOM = "random:"


def kernels(
    threads: Threads = None,
    rounds: Rounds = 9,
    device: Device = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also torch.compile of each definition: minutes.")
    ] = False,
    tune: Annotated[bool, typer.Option("--tune", help="Also other launches, on a GPU.")] = False,
    as_json: AsJson = False,
) -> None:
    """Time each kernel against eager torch and the device's bandwidth."""
    restart_with_allocator()

    def run() -> dict[str, Any]:
        import torch

        from cogrpo_trainer.benchmarks.kernels import compare_kernels

        return compare_kernels(torch.device(device), rounds=rounds, compiled=compiled, tune=tune)

    _report("kernels", run, threads, as_json)


def sampler(
    model: Model = "shapes",
    threads: Threads = None,
    rounds: Rounds = 9,
    steps: Steps = 16,
    images: Images = 1,
    device: Device = "cpu",
    dtype: Dtype = "bfloat16",
    compiled: Annotated[bool, typer.Option(help="Compiled steps (random:...).")] = True,
    as_json: AsJson = False,
) -> None:
    """Time the sampler against the straightforward pipeline."""
    restart_with_allocator()

    def run() -> dict[str, Any]:
        if model.startswith(RANDOM):
            from cogrpo_trainer.benchmarks.random_runs import compare_random_sampler

            made = _random(model, device, dtype)
            return compare_random_sampler(
                made, steps=steps, images=images, rounds=rounds, compiled=compiled
            )
        from cogrpo_trainer.benchmarks.sampler import compare_sampler

        return compare_sampler(_load(model, device), steps=steps, images=images, rounds=rounds)

    _report("sampler", run, threads, as_json)


def learner(
    model: Model = "shapes",
    threads: Threads = None,
    rounds: Rounds = 5,
    steps: Steps = 4,
    groups: Annotated[int, typer.Option(min=1, max=4, help="Prompts that are learned from.")] = 2,
    group_size: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 6,
    learner_batch: Annotated[int, typer.Option(min=1, help="Steps of the learner's pass.")] = 8,
    device: Device = "cpu",
    dtype: Dtype = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Time the gradients of a rollout against full logits, with the peak of memory."""
    restart_with_allocator()

    def run() -> dict[str, Any]:
        if model.startswith(RANDOM):
            from cogrpo_trainer.benchmarks.random_runs import compare_random_learner

            made = _random(model, device, dtype)
            return compare_random_learner(made, steps=learner_batch, rounds=rounds)
        from cogrpo_trainer.benchmarks.learner import compare_learner

        return compare_learner(
            _load(model, device),
            steps=steps,
            groups=groups,
            group_size=group_size,
            rounds=rounds,
            learner_batch=learner_batch,
        )

    _report("learner", run, threads, as_json)


def decode(
    pixels: Annotated[int, typer.Option(min=16, max=4096, help="A picture's side.")] = 1024,
    tile: Annotated[int, typer.Option(min=8, help="Tokens a side of a tile.")] = 40,
    images: Images = 1,
    threads: Threads = None,
    rounds: Rounds = 3,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Time a decode of Meissonic's VQ model, whole and in tiles, with the peak of memory."""
    restart_with_allocator()

    def run() -> dict[str, Any]:
        import torch

        from cogrpo_trainer.benchmarks.decode import compare_decode

        return compare_decode(
            device=torch.device(device), pixels=pixels, tile=tile, images=images, rounds=rounds
        )

    _report("decode", run, threads, as_json)


def signal(
    preset: Annotated[str, typer.Option(help="Of `cogrpo train`.")] = "shapes",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, as part.key=value.")
    ] = None,
    rollouts: Annotated[int, typer.Option(min=2, help="Batches whose gradients are compared.")] = 8,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far the gradients of independent rollouts agree, by step and by module."""
    restart_with_allocator()

    def run() -> dict[str, Any]:
        from cogrpo_trainer.benchmarks.signal import measure_signal
        from cogrpo_trainer.train.config import load_config

        return measure_signal(load_config(preset, None, overrides or []), rollouts)

    _report("signal", run, threads, as_json)


def check(
    threads: Threads = None,
    rounds: Rounds = 5,
    as_json: AsJson = False,
) -> None:
    """Compare sampler and learner of `shapes` with the committed ratios; status 1 if slower."""
    restart_with_allocator()
    from cogrpo_trainer.benchmarks import regression

    def run() -> dict[str, Any]:
        from cogrpo_trainer.benchmarks.learner import compare_learner
        from cogrpo_trainer.benchmarks.sampler import compare_sampler

        options: dict[str, Any] = {"rounds": rounds}
        found = regression.ratios(
            compare_sampler(_load("shapes", "cpu"), steps=16, images=1, **options),
            compare_learner(
                _load("shapes", "cpu"),
                steps=4,
                groups=2,
                group_size=6,
                learner_batch=8,
                **options,
            ),
        )
        return {"ratios": found, "slower": regression.slower(found, regression.committed())}

    if _report("check", run, threads, as_json)["slower"]:
        raise typer.Exit(1)


def _random(model: str, device: str, dtype: str) -> Any:
    from cogrpo_trainer.benchmarks.random_model import random_model

    return random_model(model, device, torch_type(dtype))


def _load(model: str, device: str) -> Any:
    from cogrpo_core.pipeline import CoGRPOPipeline

    return CoGRPOPipeline.from_pretrained(model, device=device)


def _report(
    name: str, run: Callable[[], dict[str, Any]], threads: int | None, as_json: bool
) -> dict[str, Any]:
    """Runs it on so many threads and prints what it found, indented or on one line."""
    import os

    import torch

    from cogrpo_trainer.device import torch_threads

    count = threads or len(os.sched_getaffinity(0))
    try:
        with torch_threads(count):
            found = {"bench": name, "threads": count, "torch": torch.__version__} | run()
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(json.dumps(found) if as_json else json.dumps(found, indent=2))
    return found
