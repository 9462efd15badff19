"""How far the gradients of independent rollouts agree: what an update knows, and what is noise.

The agreement of a part of the gradient is the mean cosine between the rollouts' parts. With signal
s and noise n it is s^2 / (s^2 + n^2): at 0.1 ten rollouts together are as much signal as noise. It
tells which steps and weights are worth training, and how large a batch has to be.

Shape letters: K rollouts, T steps, P parameters.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cogrpo_core.grpo.batch import all_steps
from cogrpo_trainer.train.config import TrainConfig
from cogrpo_trainer.train.launch import make_composite
from cogrpo_trainer.train.run import Trainer, place_of

Gradients = NDArray[np.float16]


def measure_signal(config: TrainConfig, rollouts: int) -> dict[str, Any]:
    """Agreement of the model's gradients over so many of the run's first rollouts, by step, and for
    the sum of the steps that are trained on, with its modules. Keeps K T P numbers of two bytes in
    memory.
    """
    with TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder), make_composite(config))
        found = [step_gradients(trainer, number) for number in range(rollouts)]
    gradients_KTP = np.stack(found)
    wanted = config.model_phase.trained_steps(config.num_inference_steps)
    sum_KP = gradients_KTP[:, wanted].astype(np.float32).sum(axis=1)
    return {
        "samples": config.model_phase.batch_size,
        "rollouts": rollouts,
        "steps": [
            {"step": step, **agreement(gradients_KTP[:, step].astype(np.float32))}
            for step in range(gradients_KTP.shape[1])
        ],
        "sum": agreement(sum_KP),
        "modules": {
            name: agreement(sum_KP[:, places]) for name, places in _modules(trainer).items()
        },
    }


def step_gradients(trainer: Trainer, iteration: int) -> Gradients:
    """The loss's gradient of an iteration's rollout, step by step: [T, P]; nothing is changed."""
    learner = trainer.learners["model"]
    found = trainer.collect(place_of(trainer.config, iteration))
    sample_S, step_S = all_steps(found.batch)
    weights = [w for w in trainer.checkpoint.transformer.parameters() if w.requires_grad]
    rows = []
    for step in range(trainer.config.num_inference_steps):
        chosen = sample_S[found.valid_B[sample_S] & (step_S == step)]
        for weight in weights:
            weight.grad = None
        learner.accumulate(
            found.batch, chosen, torch.full_like(chosen, step), found.advantage_B, found.conditions
        )
        rows.append(torch.cat([_flat_gradient(weight) for weight in weights]).half().numpy())
    return np.stack(rows)


def agreement(gradients_KP: NDArray[np.float32]) -> dict[str, float]:
    """The mean cosine of all pairs of rows, its standard error over pairs, and the mean norm."""
    norms = np.linalg.norm(gradients_KP, axis=1)
    unit_KP = gradients_KP / np.maximum(norms, 1e-20)[:, None]
    cosines = [float(unit_KP[a] @ unit_KP[b]) for a, b in combinations(range(len(unit_KP)), 2)]
    error = float(np.std(cosines) / np.sqrt(len(cosines)))
    return {"agreement": float(np.mean(cosines)), "error": error, "norm": float(norms.mean())}


def _flat_gradient(weight: torch.Tensor) -> torch.Tensor:
    return (torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten()


def _modules(trainer: Trainer) -> Mapping[str, slice]:
    """Where the weights of the transformer's parts lie among the P, in their order."""
    places: dict[str, slice] = {}
    first = 0
    for name, weight in trainer.checkpoint.transformer.named_parameters():
        if not weight.requires_grad:
            continue
        words = name.split(".")
        module = ".".join(words[:2]) if words[0].endswith("blocks") else words[0]
        begin = places[module].start if module in places else first
        first += weight.numel()
        places[module] = slice(begin, first)
    return places
