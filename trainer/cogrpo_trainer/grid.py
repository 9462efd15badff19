"""Draws judged pictures as a captioned grid, for the eye and for the docs.

`evaluate.py` makes the samples.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cogrpo_trainer.evaluate import Sample

CELLS = 64
COLUMNS = 8
PICTURE = 192  # pixels: 64 x 3
MARGIN = 10
FONT_SIZE = 13
CAPTION_LINES = 5
LINE = 16  # pixels
LETTERS = 26  # of a caption's line; the mark stands beside it
GREEN, RED = (35, 150, 65), (205, 45, 45)


def draw_grid(samples: Sequence[Sample]) -> Image.Image:
    """Up to 64 of the samples, every task's in turn: picture, caption, and a mark for its score.

    The mark and the frame are green for a score of 1, red for less.
    """
    chosen = _choose(samples)
    rows = -(-len(chosen) // COLUMNS)
    width, height = PICTURE + 2 * MARGIN, PICTURE + 2 * MARGIN + CAPTION_LINES * LINE
    canvas = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    for i, sample in enumerate(chosen):
        _draw_cell(canvas, sample, i % COLUMNS * width + MARGIN, i // COLUMNS * height + MARGIN)
    return canvas


def save_grid(samples: Sequence[Sample], file: Path) -> None:
    """Writes the grid as a PNG of few colors, so that it stays small enough for a repository."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draw_grid(samples).quantize(256, method=Image.Quantize.MEDIANCUT).save(file, optimize=True)


def _choose(samples: Sequence[Sample]) -> list[Sample]:
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.prompt.task, []).append(sample)
    longest = max(len(group) for group in by_task.values())
    in_turn = [group[i] for i in range(longest) for group in by_task.values() if i < len(group)]
    return in_turn[:CELLS]


def _draw_cell(canvas: Image.Image, sample: Sample, x: int, y: int) -> None:
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(FONT_SIZE)
    color = GREEN if sample.score == 1.0 else RED
    picture = sample.image.convert("RGB").resize((PICTURE, PICTURE), Image.Resampling.NEAREST)
    pen.rectangle((x - 2, y - 2, x + PICTURE + 1, y + PICTURE + 1), fill=color)
    canvas.paste(picture, (x, y))
    left, top = x + PICTURE - 15, y + PICTURE + 6
    if sample.score == 1.0:
        mark = [(left, top + 6), (left + 4, top + 11), (left + 13, top)]
        pen.line(mark, fill=color, width=3)
    else:
        pen.line((left, top, left + 11, top + 11), fill=color, width=3)
        pen.line((left, top + 11, left + 11, top), fill=color, width=3)
    lines = textwrap.wrap(sample.prompt.text, LETTERS, max_lines=CAPTION_LINES, placeholder=" ...")
    for i, line in enumerate(lines):
        pen.text((x, y + PICTURE + 4 + i * LINE), line, fill=(40, 40, 40), font=font)
