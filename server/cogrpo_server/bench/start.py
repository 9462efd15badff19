"""`cogrpo bench start`: how long the service takes to its first picture, new and started again.

Torch and the service are loaded by the service's own process.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import typer

KINDS = {"plain": (), "compiled": ("--compile",)}
"""What `cogrpo serve` is started with."""
PICTURE_SECONDS = 120.0


@dataclass(frozen=True)
class Started:
    """One start, in seconds from when the process began."""

    kind: str
    folder: str
    """`new` where the data folder was, `kept` where the service had run in it before."""
    ready: float
    first_picture: float


def start(
    model: Annotated[str, typer.Option(help="Embedded name, folder or Hub id.")] = "shapes",
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="CPU threads of the model; all by default.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="New data folders of each kind.")] = 3,
    kind: Annotated[
        list[str] | None, typer.Option(help="plain or compiled [default: both].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A file for the JSON object.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Start the service in a new data folder and again in the same, to its first picture.

    With and without --compile, whose graphs the second start finds in the data folder.
    """
    from rich.console import Console

    from cogrpo_server.bench.report import commit, cpu_model
    from cogrpo_server.bench.summary import BenchError

    chosen = kind or list(KINDS)
    if unknown := set(chosen) - KINDS.keys():
        raise BenchError(f"unknown kind {min(unknown)!r}: choose of {', '.join(KINDS)}")
    progress = Console(stderr=True)
    cores = len(os.sched_getaffinity(0))
    starts = []
    for number in range(rounds):
        for name in chosen if number % 2 == 0 else chosen[::-1]:
            for one in started_twice(name, model, threads or cores):
                progress.print(
                    f"round {number + 1} of {rounds}: {name}, {one.folder} folder, ready after "
                    f"{one.ready:.1f} s, first picture after {one.first_picture:.1f} s"
                )
                starts.append(one)
    found: dict[str, Any] = {
        "commit": commit(),
        "cpu": cpu_model(),
        "cpus": cores,
        "model": model,
        "threads": threads or cores,
        "rounds": rounds,
        "starts": [asdict(one) for one in starts],
        "medians": medians(starts),
    }
    text = json.dumps(found, indent=2)
    if out is not None:
        out.write_text(text + "\n")
    if as_json:
        print(text)
    else:
        for row, value in found["medians"].items():
            print(f"{row}: {value:.1f} s to the first picture")


def started_twice(kind: str, model: str, threads: int) -> Iterator[Started]:
    """The service's start in a new data folder, and then again in the same.

    Raises `BenchError` where it does not start.
    """
    from cogrpo_server.bench.service import running_service

    with tempfile.TemporaryDirectory(prefix="cogrpo-bench-") as folder:
        data_dir = Path(folder) / "data"
        for state in ("new", "kept"):
            options = ("--no-trainer", *KINDS[kind])
            began = time.monotonic()
            with running_service(model, threads, data_dir=data_dir, options=options) as service:
                ready = time.monotonic() - began
                httpx.post(
                    f"{service.url}/generate",
                    headers={"Authorization": f"Bearer {service.key}"},
                    json={"prompt": "a red circle", "seed": 0},
                    timeout=PICTURE_SECONDS,
                    trust_env=False,
                ).raise_for_status()
                yield Started(kind, state, ready, time.monotonic() - began)


def medians(starts: list[Started]) -> dict[str, float]:
    """Seconds to the first picture, by kind and folder."""
    names = dict.fromkeys((one.kind, one.folder) for one in starts)
    return {
        f"{kind}, {folder} folder": median(
            one.first_picture for one in starts if (one.kind, one.folder) == (kind, folder)
        )
        for kind, folder in names
    }
