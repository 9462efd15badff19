"""GenEval (arXiv 2310.11513): six tasks on objects, in the benchmark's own folder layout.

    NUMBER/metadata.jsonl         the prompt's line of evaluation_metadata.jsonl
    NUMBER/samples/NUMBER.png     its pictures
    results.jsonl                 a verdict a picture, as the benchmark's evaluate_images.py has it

So its own scripts can take over after the pictures, or after the verdicts.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.prompt_files import read_rows
from cogrpo_trainer.suites.detector import Detector
from cogrpo_trainer.suites.geneval_rules import Spec, counted, judge
from cogrpo_trainer.suites.pictures import Picture, samples, write_whole
from cogrpo_trainer.suites.scores import NAME, ScoreLines, read_picture

SAMPLES = 4
WHERE = "prompts/evaluation_metadata.jsonl of https://github.com/djghosh13/geneval"
RESULTS = "results.jsonl"


def read(metadata: Path) -> list[Spec]:
    """The benchmark's prompts with what each asks for. Raises `EvaluationError`."""
    specs = []
    for i, row in enumerate(read_rows(metadata), 1):
        try:
            specs.append(Spec.model_validate(row))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise EvaluationError(
                f"{metadata}, line {i}: not GenEval's ({field}: {first['msg']}); give {WHERE}"
            ) from None
    if not specs:
        raise EvaluationError(f"{metadata}: holds no prompt; give {WHERE}")
    return specs


def pictures(specs: Sequence[Spec], each: int, seed: int) -> list[Picture]:
    """`each` pictures a prompt."""
    return [
        Picture(
            f"{one.case:05d}/samples/{one.j:05d}.png",
            specs[one.case].prompt,
            one.seed,
            one.case,
            specs[one.case].tag,
        )
        for one in samples(len(specs), each, seed)
    ]


def write_metadata(folder: Path, specs: Sequence[Spec]) -> None:
    """Each prompt's line into its folder."""
    for case, spec in enumerate(specs):
        write_whole(folder / f"{case:05d}" / "metadata.jsonl", _line(spec).encode())


def score(
    folder: Path,
    specs: Sequence[Spec],
    made: Sequence[Picture],
    detector: Detector,
    *,
    on_progress: Callable[[int], None] = lambda scored: None,
) -> dict[str, float]:
    """1 or 0 for every picture by its path; `results.jsonl` has the reasons."""
    lines = ScoreLines(folder / RESULTS, f"{detector.name} {detector.version}")
    missing = lines.missing(made)
    on_progress(len(made) - len(missing))
    for one in missing:
        spec, image = specs[one.case], read_picture(folder, one)
        found = detector.objects(image)
        verdict = judge(spec, found, partial(detector.colors, image))
        boxes = {
            name: [[*each.box, each.confidence] for each in some]
            for name, some in counted(found, spec.tag == "counting").items()
        }
        row = {
            NAME: one.path,
            "tag": spec.tag,
            "prompt": spec.prompt,
            "correct": verdict.correct,
            "reason": verdict.reason,
            "metadata": _line(spec),
            "details": json.dumps(boxes),
        }
        lines.add([row])
        on_progress(1)
    return {one.path: float(lines.rows[one.path]["correct"]) for one in made}


def _line(spec: Spec) -> str:
    return spec.model_dump_json(by_alias=True, exclude_defaults=True)
