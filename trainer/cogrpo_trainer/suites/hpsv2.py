"""HPSv2's suite (arXiv 2306.09341): 800 prompts in each of four styles, scored by HPSv2."""

from pathlib import Path

from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.prompt_files import prompt_of, read_rows
from cogrpo_trainer.suites.pictures import Picture, samples

REWARD = "hpsv2"
SAMPLES = 1
STYLES = {
    "anime": "Animation",
    "concept-art": "Concept-art",
    "paintings": "Painting",
    "photo": "Photo",
}
"""The published files and the paper's names of them."""
WHERE = (
    "the folder benchmark/ of the Hub's dataset zhwang/HPDv2, of which anime.json, "
    "concept-art.json, paintings.json and photo.json are read"
)


def pictures(prompts: Path, each: int, seed: int) -> list[Picture]:
    """`each` pictures a prompt as pictures/STYLE/NUMBER_J.png, style after style.

    Raises `EvaluationError`, `PromptFileError`.
    """
    cases = []
    for style in STYLES:
        file = prompts / f"{style}.json"
        if not file.is_file():
            raise EvaluationError(f"{file}: is not there; give {WHERE}")
        texts = [prompt_of(row, file, i).strip() for i, row in enumerate(read_rows(file))]
        if not texts or not all(texts):
            raise EvaluationError(f"{file}: has no prompts, or an empty one")
        cases += [(style, number, text) for number, text in enumerate(texts)]
    made = []
    for one in samples(len(cases), each, seed):
        style, number, text = cases[one.case]
        path = f"pictures/{style}/{number:05d}_{one.j}.png"
        made.append(Picture(path, text, one.seed, one.case, STYLES[style]))
    return made
