"""DPG-Bench's pictures (arXiv 2403.05135): 2x2 grids named as the prompts, for its own scorer.

The scorer asks mPLUG, a model of modelscope that no library we use has; it is not here.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cogrpo_core.images import encode_png
from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.prompt_files import MAX_FILE_BYTES
from cogrpo_trainer.suites.pictures import Picture, samples, write_whole
from cogrpo_trainer.suites.scores import read_picture

SAMPLES = 4
GRIDS = "grids"
WHERE = "the folder dpg_bench/prompts/ of https://github.com/TencentQQGYLab/ELLA"


def pictures(prompts: Path, each: int, seed: int) -> list[Picture]:
    """Four pictures a prompt file, or one, as samples/NAME/J.png. Raises `EvaluationError`."""
    if each not in (1, SAMPLES):
        raise EvaluationError(f"dpg: {each} pictures make no 2x2 grid; --seeds is 4 or 1")
    files = sorted(prompts.glob("*.txt"))
    if not files:
        raise EvaluationError(f"{prompts}: holds no *.txt; give {WHERE}")
    texts = [_text(file) for file in files]
    return [
        Picture(
            f"samples/{files[one.case].stem}/{one.j}.png", texts[one.case], one.seed, one.case, ""
        )
        for one in samples(len(files), each, seed)
    ]


def write_grids(folder: Path, made: Sequence[Picture]) -> tuple[Path, int]:
    """Puts each prompt's pictures, which are there, on one PNG; gives the folder and a side.

    The side is that of one picture: the scorer's `resolution`.
    """
    by_case: dict[int, list[Picture]] = {}
    for one in made:
        by_case.setdefault(one.case, []).append(one)
    side = 0
    for group in by_case.values():
        images = [read_picture(folder, one) for one in group]
        side = images[0].width
        path = folder / GRIDS / f"{Path(group[0].path).parent.name}.png"
        if not path.is_file():
            write_whole(path, encode_png(grid(images)))
    return folder / GRIDS, side


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Four pictures of one size, row by row; one stays as it is."""
    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % 2 * width, i // 2 * height))
    return sheet


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise EvaluationError(f"{file}: is larger than {MAX_FILE_BYTES:,} bytes")
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    if not text:
        raise EvaluationError(f"{file}: is empty")
    return text
