"""The prompts of an iteration: a function of the run's seed and the iteration, nothing else."""

from collections.abc import Callable, Sequence

import numpy as np

from cogrpo_core.shapes.captions import caption
from cogrpo_core.shapes.checker import TASKS
from cogrpo_core.shapes.suites import LONG, practice_spec
from cogrpo_trainer.prompt_files import PromptFileError, PromptSet, find_file, read_prompts
from cogrpo_trainer.train.config import ConfigError

SHAPES = "shapes"
MASTERED = ("single_object", "colors", "position")
MASTERED_WEIGHT = 0.2


class Prompts:
    """Training prompts: the embedded world's (no held-out composition among them), or of files.

    Every prompt of all files is as likely as any other.
    """

    def __init__(self, source: str | Sequence[str]) -> None:
        """Raises `ConfigError` for a file that is missing, empty or not what its ending says."""
        self.shortened: Callable[[str], str] = lambda text: text
        """What makes a file's prompt as short as the text encoder reads."""
        self.files: PromptSet | None = None
        if source != SHAPES:
            names = [source] if isinstance(source, str) else source
            try:
                self.files = read_prompts([find_file(name) for name in names])
            except PromptFileError as error:
                raise ConfigError(f"prompts: {error}") from None

    @property
    def lines(self) -> list[str] | None:
        """All prompts of the files; None for the embedded world's."""
        return None if self.files is None else self.files.prompts

    def draw(self, count: int, *, seed: int, iteration: int) -> list[str]:
        """`count` prompts."""
        rng = np.random.default_rng([seed, iteration, 1])
        known = self.lines
        if known is None:
            return [_shapes_prompt(rng) for _ in range(count)]
        # Without repeats as far as the files reach.
        rounds = -(-count // len(known))
        order = np.concatenate([rng.permutation(len(known)) for _ in range(rounds)])
        return [self.shortened(known[i]) for i in order[:count]]


def _shapes_prompt(rng: np.random.Generator) -> str:
    """A prompt of one of the evaluated tasks, never a held-out composition.

    Tasks that the base model masters come up seldom: where all of a group are right, none is
    better than the others, and the group teaches nothing.
    """
    tasks = [*TASKS, LONG]
    weights = np.array([MASTERED_WEIGHT if task in MASTERED else 1.0 for task in tasks])
    task = str(rng.choice(tasks, p=weights / weights.sum()))
    return caption(practice_spec(task, rng), rng)


def rollout_seeds(count: int, *, seed: int, iteration: int) -> list[int]:
    """A seed for each sample of an iteration."""
    rng = np.random.default_rng([seed, iteration, 2])
    return [int(value) for value in rng.integers(0, 2**32, count)]
