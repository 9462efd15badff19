"""ImageReward's suite (arXiv 2304.05977): prompts of real users, scored by ImageReward."""

import re
from pathlib import Path

from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.prompt_files import NAMES, prompt_of, read_rows
from cogrpo_trainer.suites.pictures import Picture, samples

REWARD = "image-reward"
SAMPLES = 1
WHERE = (
    "benchmark/benchmark-prompts.json of https://github.com/THUDM/ImageReward, or "
    "metadata-test.parquet of the Hub's dataset THUDM/ImageRewardDB"
)
SAFE = re.compile(r"[\w-]{1,100}")


def pictures(prompts: Path, each: int, seed: int) -> list[Picture]:
    """`each` pictures a prompt as pictures/ID_J.png, the layout of the benchmark's own script.

    Rows of one id, as the parquet file has one for each of a prompt's pictures, are one prompt; a
    row without an id has its number. Raises `EvaluationError`, `PromptFileError`.
    """
    texts: dict[str, str] = {}
    for number, row in enumerate(read_rows(prompts)):
        text = prompt_of(row, prompts, number).strip()
        named = row if isinstance(row, dict) else {}
        name = str(next((named[key] for key in NAMES if key in named), f"{number:05d}"))
        if not SAFE.fullmatch(name):
            raise EvaluationError(f"{prompts}: row {number} has an id that is no file name")
        if not text or texts.setdefault(name, text) != text:
            raise EvaluationError(f"{prompts}: row {number} has no prompt, or the id of another")
    if not texts:
        raise EvaluationError(f"{prompts}: holds no prompt")
    cases = list(texts.items())
    made = []
    for one in samples(len(cases), each, seed):
        name, text = cases[one.case]
        made.append(Picture(f"pictures/{name}_{one.j}.png", text, one.seed, one.case, ""))
    return made
