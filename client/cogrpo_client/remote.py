"""`cogrpo generate --server URL`: pictures from a service, through the SDK.

The progress of the steps is drawn on standard error, one line for each file goes to standard
output.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cogrpo_client.client import Client
from cogrpo_client.errors import APIError
from cogrpo_client.options import GenerateOptions
from cogrpo_client.streams import EventStream
from cogrpo_client.types import (
    CompletedEvent,
    GeneratedImage,
    Generation,
    Quality,
    Schedule,
    StartEvent,
    StepEvent,
)


class RemoteError(ValueError):
    """The service gives no pictures, or they cannot be written."""


def generate(
    prompt: Annotated[str, typer.Argument(help="What the pictures should show.")],
    server: Annotated[str, typer.Option(help="The service, as http://127.0.0.1:8000.")],
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 256.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the first picture; the next ones count up. Random if left out."),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="How many pictures, 1 to 8.")] = 1,
    out: Annotated[Path, typer.Option(help="The folder for the PNG files.")] = Path(),
    negative_prompt: Annotated[str, typer.Option(help="What they should not show.")] = "",
    guidance_scale: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt; 1 is no guidance.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="learned, meissonic, paper-table-1, cosine-power[:GAMMA], or a JSON object of "
            "remask_ratio, sample_temperature, remask_temperature, guidance_scale."
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Pixels, as 64 or, height first, 64x96.")] = None,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="Let a busy service take fewer steps.")
    ] = False,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds within which the pictures must be there.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="A name to erase the pictures by.")] = None,
    store: Annotated[
        bool, typer.Option(help="Whether the service may keep them for training.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, for machines.")
    ] = False,
) -> None:
    """Make pictures on a service: a PNG file and a line of output for each.

    The API key is COGRPO_API_KEY, or for a service on this machine that of its key file.
    """
    height, width = _size(size)
    quality: Quality = "adaptive" if adaptive else "full"
    options = GenerateOptions(
        num_inference_steps=steps,
        seed=seed,
        n=n,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        schedule=_schedule(schedule),
        height=height,
        width=width,
        quality=quality,
        deadline_ms=None if deadline is None else round(1000 * deadline),
        user=user,
        store=store,
    )
    try:
        with Client(server) as client, client.stream(prompt, **options) as stream:
            generation = _follow(stream)
    except APIError as error:
        raise RemoteError(error.message) from error
    for image in generation.images:
        path = out / f"{_slug(prompt)}-{image.seed}.png"
        _write(path, image)
        typer.echo(_line(path, image, generation, as_json))


def _follow(stream: EventStream) -> Generation:
    """The pictures, with a bar of the steps of all of them while they are made."""
    with progress_bar() as progress:
        task = progress.add_task("waiting", total=None)
        for event in stream:
            if isinstance(event, StartEvent):
                total = event.steps * len(event.seeds)
                progress.update(task, description=event.schedule, total=total)
            elif isinstance(event, StepEvent):
                progress.advance(task)
            elif isinstance(event, CompletedEvent):
                return event.generation
    raise AssertionError("a stream ends with the pictures or an error")


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A progress bar on standard error, if somebody looks at it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        yield progress


def _line(path: Path, image: GeneratedImage, generation: Generation, as_json: bool) -> str:
    """What is said of a picture."""
    made = generation.attribution
    if not as_json:
        return f"{path}  seed {image.seed}  steps {made.steps_used}"
    return json.dumps(
        {
            "path": str(path),
            "seed": image.seed,
            "steps": made.steps_used,
            "schedule": made.schedule,
            "model": made.model,
            "policy_version": made.policy_version,
            "id": generation.id,
            "trajectory_id": image.trajectory_id,
        }
    )


def _size(size: str | None) -> tuple[int | None, int | None]:
    """(height, width) of "64" or "64x96"."""
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", size)
    if match is None:
        raise typer.BadParameter("a size is a number of pixels such as 64, or 64x96")
    return int(match[1]), int(match[2] or match[1])


def _schedule(schedule: str | None) -> str | Schedule | None:
    """A preset's name as it is, a JSON object as a schedule."""
    if schedule is None or not schedule.lstrip().startswith("{"):
        return schedule
    try:
        return Schedule.model_validate_json(schedule)
    except ValueError:
        raise typer.BadParameter(
            "--schedule is no JSON object of base, remask_ratio, sample_temperature, "
            "remask_temperature, guidance_scale with their values in range"
        ) from None


def _slug(prompt: str) -> str:
    """The prompt's first words as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "picture"


def _write(path: Path, image: GeneratedImage) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as error:
        raise RemoteError(f"{path} cannot be written: {error.strerror}") from None
