"""DPG-Bench (arXiv 2403.05135): long prompts, each with questions about its pictures.

samples/NAME/J.png    the pictures of prompt NAME
grids/NAME.png        the same on one sheet, for the benchmark's own scorer, which asks mPLUG
answers.jsonl         what BLIP answered in its place: numbers to compare with each other only
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from cogrpo_core.images import encode_png
from cogrpo_trainer.evaluate import EvaluationError, Interval
from cogrpo_trainer.prompt_files import MAX_FILE_BYTES
from cogrpo_trainer.suites import dpg_questions
from cogrpo_trainer.suites.dpg_questions import Answered, Question, said_yes
from cogrpo_trainer.suites.pictures import Picture, samples, write_whole
from cogrpo_trainer.suites.report import interval, ratio
from cogrpo_trainer.suites.scores import NAME, ScoreLines, by_group, read_picture
from cogrpo_trainer.suites.vqa import Blip

SAMPLES = 4
GRIDS = "grids"
ANSWERS = "answers.jsonl"
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


def questions(file: Path, made: Sequence[Picture]) -> list[list[Question]]:
    """Those of dpg_bench.csv about each prompt, by its number. Raises `EvaluationError`."""
    known = dpg_questions.read(file)
    names = {one.case: _name(one) for one in made}
    for name in names.values():
        if name not in known:
            raise EvaluationError(
                f"{file}: has no question about {name}.txt; give the same prompts"
            )
    return [known[names[case]] for case in sorted(names)]


def ask(
    folder: Path,
    asked: Sequence[Sequence[Question]],
    made: Sequence[Picture],
    vqa: Blip,
    *,
    on_progress: Callable[[int], None] = lambda answered: None,
) -> dict[str, dict[int, bool]]:
    """Whether each question about each picture was answered yes, by the picture's path.

    Answers that `answers.jsonl` has are not asked for again. Raises `EvaluationError`.
    """
    texts = json.dumps([[(one.number, one.text) for one in some] for some in asked])
    digest = hashlib.sha256(texts.encode()).hexdigest()[:12]
    lines = ScoreLines(folder / ANSWERS, f"{vqa.name} {vqa.version} to questions {digest}")
    missing = lines.missing(made)
    on_progress(len(made) - len(missing))
    for one in missing:
        some = asked[one.case]
        said = vqa.answers(read_picture(folder, one), [each.text for each in some])
        by_number = {str(each.number): answer for each, answer in zip(some, said, strict=True)}
        lines.add([{NAME: one.path, "answers": by_number}])
        on_progress(1)
    return {
        one.path: {
            int(number): said_yes(answer)
            for number, answer in lines.rows[one.path]["answers"].items()
        }
        for one in made
    }


def means(
    asked: Sequence[Sequence[Question]], made: Sequence[Picture], yes: Mapping[str, Answered]
) -> tuple[dict[str, Interval], Interval]:
    """By broad category, and overall.

    Overall is the mean over prompts of their pictures' scores. A category is the share of its
    questions that were answered yes, whatever they depend on, as the benchmark has it.
    """
    scores = {one.path: dpg_questions.score(asked[one.case], yes[one.path]) for one in made}
    answers: dict[str, dict[int, list[bool]]] = {}
    for one in made:
        for each in asked[one.case]:
            of_prompt = answers.setdefault(each.category, {}).setdefault(one.case, [])
            of_prompt.append(yes[one.path][each.number])
    rows = {
        category: ratio([sum(one) for one in some.values()], [len(one) for one in some.values()])
        for category, some in sorted(answers.items())
    }
    return rows, interval(by_group(made, scores)[""])


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
        path = folder / GRIDS / f"{_name(group[0])}.png"
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


def _name(picture: Picture) -> str:
    """Of its prompt: the prompt file's, without the ending."""
    return Path(picture.path).parent.name


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
