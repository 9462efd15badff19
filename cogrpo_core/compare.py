"""`cogrpo compare`: one prompt and seed, two models side by side at several step counts."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogrpo_core.cli import OutputError

if TYPE_CHECKING:
    from PIL import Image

CELL = 192  # pixels of a picture's longer side
MARGIN = 12
HEADING = 34
FOOTING = 46  # two lines of a caption


def compare(
    prompt: Annotated[str, typer.Argument(help="What the pictures should show.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of every picture.")] = 0,
    base: Annotated[str, typer.Option(help="The model to compare with.")] = "shapes",
    model: Annotated[str, typer.Option(help="The improved model.")] = "shapes-cogrpo",
    steps: Annotated[str, typer.Option(help="Step counts, separated by commas.")] = "2,4,8,12",
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("compare.png"),
) -> None:
    """Draw a base model above an improved one, at equal seed and several step counts."""
    from cogrpo_core.pipeline import CoGRPOPipeline

    counts = _counts(steps)
    rows = []
    for name in (base, model):
        pipe = CoGRPOPipeline.from_pretrained(name)
        pipe(prompt, num_inference_steps=1, seed=seed)  # so that no picture's time is the first's
        row = []
        for count in counts:
            began = time.perf_counter()
            output = pipe(prompt, num_inference_steps=count, seed=seed)
            took = time.perf_counter() - began
            row.append((f"{count} steps, {took:.2f} s", output.images[0]))
        rows.append((f"{name}, {output.trajectories[0].schedule} schedule", row))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_rows(prompt, rows).save(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from None
    typer.echo(str(out))


def draw_rows(title: str, rows: "list[tuple[str, list[tuple[str, Image.Image]]]]") -> "Image.Image":
    """A sheet of pictures: for each row a heading, then pictures with a caption each."""
    from PIL import Image, ImageDraw, ImageFont

    columns = max(len(row) for _, row in rows)
    width = columns * (CELL + MARGIN) + MARGIN
    height = HEADING + len(rows) * (HEADING + CELL + FOOTING)
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    pen.text((MARGIN, 8), title[: width // 8], fill="black", font=font)
    for i, (heading, row) in enumerate(rows):
        top = HEADING + i * (HEADING + CELL + FOOTING)
        pen.text((MARGIN, top + 8), heading, fill=(60, 60, 60), font=font)
        for j, (caption, image) in enumerate(row):
            left = MARGIN + j * (CELL + MARGIN)
            scale = CELL / max(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            picture = image.resize(size, Image.Resampling.NEAREST)
            canvas.paste(picture, (left, top + HEADING))
            pen.rectangle(
                (left - 1, top + HEADING - 1, left + size[0], top + HEADING + size[1]),
                outline=(200, 200, 200),
            )
            pen.text((left, top + HEADING + CELL + 4), caption, fill=(60, 60, 60), font=font)
    return canvas


def _counts(steps: str) -> list[int]:
    try:
        return [int(part) for part in steps.split(",")]
    except ValueError:
        raise typer.BadParameter("--steps are whole numbers separated by commas") from None
