"""A run small enough for a test: the tiny checkpoint, a file of prompts, rewards of pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cogrpo_core.rewards.composite import Composite
from cogrpo_trainer.train.config import TrainConfig


class Brightness:
    """More light, more reward."""

    name = "brightness"
    version = "1"

    def __call__(self, images: np.ndarray, prompts: list[str]) -> np.ndarray:
        return images.astype(np.float32).mean(axis=(1, 2, 3))


class Redness:
    """More red than blue, more reward."""

    name = "redness"
    version = "1"

    def __call__(self, images: np.ndarray, prompts: list[str]) -> np.ndarray:
        pixels = images.astype(np.float32)
        return (pixels[..., 0] - pixels[..., 2]).mean(axis=(1, 2))


WEIGHTS = {"brightness": 0.7, "redness": 0.3}  # in a group of two, unlike weights never cancel


def composite(**extra: Any) -> Composite:
    rewards = [Brightness(), Redness(), *extra.values()]
    return Composite(rewards, weights={r.name: 1.0 for r in rewards}, timeout_s=60.0)


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red circle\na blue star\n\ntwo green hearts\na ring\n")
    return path


@pytest.fixture
def make_config(tiny_checkpoint: Path, prompts_file: Path) -> Callable[..., TrainConfig]:
    """A configuration of two groups of two samples and two steps; keywords change it."""

    def make(**changes: Any) -> TrainConfig:
        model = {
            "iterations": 2,
            "learning_rate": 1e-3,
            "group_size": 2,
            "batch_size": 4,
            "clip": 0.2,
        }
        schedule = {
            "iterations": 2,
            "learning_rate": 1e-2,
            "group_size": 2,
            "batch_size": 4,
            "clip": 0.2,
            "sigma": 0.5,
        }
        values = {
            "model": str(tiny_checkpoint),
            "prompts": str(prompts_file),
            "rewards": WEIGHTS,
            "cycles": 1,
            "num_inference_steps": 3,
            "rollout_batch": 4,
            "learner_batch": 4,
            "save_every": 1,
            "image_every": 0,
            "gate_steps": 8,
            "model_phase": model | changes.pop("model_phase", {}),
            "schedule_phase": schedule | changes.pop("schedule_phase", {}),
        }
        return TrainConfig.model_validate(values | changes)

    return make


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, so that equal means equal to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
