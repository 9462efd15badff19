"""`cogrpo generate`: pictures from a prompt, without a server.

A thin layer over pipeline.py. torch is imported inside, so that `cogrpo --help` stays quick.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from cogrpo_core.trajectory import Trajectory

MAX_SIDE = 8192


class OutputError(ValueError):
    """A picture cannot be written where the caller wants it."""


def generate(
    prompt: Annotated[str, typer.Argument(help="What the pictures should show.")],
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 256.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the first picture; the next ones count up. Random if left out."),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="How many pictures, 1 to 16.")] = 1,
    out: Annotated[Path, typer.Option(help="The folder for the PNG files.")] = Path(),
    model: Annotated[
        str, typer.Option(help="A checkpoint: an embedded name, a folder or a Hub id.")
    ] = "shapes",
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
    scale_up: Annotated[
        int, typer.Option(help="Write every pixel this many times as large.", min=1, max=16)
    ] = 1,
    decode_tile: Annotated[
        int | None,
        typer.Option(min=8, help="Decode larger pictures in tiles of so many tokens a side."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; the GPU if there is one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16 to compute in.")] = "float32",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, for machines.")
    ] = False,
) -> None:
    """Make pictures from a prompt, without a server: a PNG file and a line of output for each."""
    from cogrpo_core.images import png_bytes
    from cogrpo_core.pipeline import CoGRPOPipeline

    height, width = _size(size)
    pipe = CoGRPOPipeline.from_pretrained(model, dtype=torch_type(dtype), device=device_of(device))
    pipe.decode_tile = decode_tile
    jobs = pipe.plan(
        prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        schedule=_schedule(schedule),
        seed=seed,
        height=height,
        width=width,
        num_images_per_prompt=n,
    )
    if max(jobs[0].height, jobs[0].width) * scale_up > MAX_SIDE:
        raise OutputError(f"--scale-up {scale_up} makes a side longer than {MAX_SIDE} pixels")
    folder = _folder(out)
    for begin in range(0, n, pipe.samples_per_pass):
        trajectories = pipe.generate(jobs[begin : begin + pipe.samples_per_pass])
        for trajectory, image in zip(trajectories, pipe.decode(trajectories), strict=True):
            path = folder / f"{_slug(prompt)}-{trajectory.seed}.png"
            _write(path, png_bytes(image, trajectory, scale_up=scale_up))
            typer.echo(_line(path, trajectory, as_json))


def _line(path: Path, trajectory: "Trajectory", as_json: bool) -> str:
    """What is said of a picture."""
    seed, steps = trajectory.seed, trajectory.num_steps
    if not as_json:
        return f"{path}  seed {seed}  steps {steps}"
    names = {"schedule": trajectory.schedule, "model": trajectory.model}
    return json.dumps({"path": str(path), "seed": seed, "steps": steps, **names})


def device_of(device: str | None) -> str:
    """The asked-for device, or the best that is there; `typer.BadParameter` for another."""
    import torch

    has_gpu = torch.cuda.is_available()
    if device not in (None, "cpu", "cuda") or (device == "cuda" and not has_gpu):
        raise typer.BadParameter(f"the device {device!r} is not here; it may be cpu or cuda")
    return device or ("cuda" if has_gpu else "cpu")


def torch_type(name: str) -> "torch.dtype":
    """The type of that name; `typer.BadParameter` for one that models do not compute in."""
    import torch

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in types:
        raise typer.BadParameter(f"the type {name!r} is not known; it may be {' or '.join(types)}")
    return types[name]


def _size(size: str | None) -> tuple[int | None, int | None]:
    """(height, width) of "64" or "64x96"."""
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", size)
    if match is None:
        raise typer.BadParameter("a size is a number of pixels such as 64, or 64x96")
    return int(match[1]), int(match[2] or match[1])


def _schedule(schedule: str | None) -> str | dict[str, object] | None:
    """A preset's name as it is, a JSON object as a mapping."""
    if schedule is None or not schedule.lstrip().startswith("{"):
        return schedule
    try:
        values: dict[str, object] = json.loads(schedule)
    except (ValueError, RecursionError):
        raise typer.BadParameter("--schedule is not valid JSON") from None
    return values


def _slug(prompt: str) -> str:
    """The prompt's first words as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "picture"


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"no folder can be made at {out}: {error.strerror}") from None
    return out


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
