"""How far the gradients of independent rollouts agree: what an update knows, and what is noise.

The agreement of a part of the gradient is the mean cosine between the rollouts' parts. With signal
s and noise n it is s^2 / (s^2 + n^2): at 0.1 ten rollouts together are as much signal as noise. It
tells which steps and weights are worth training, and how large a batch has to be. What agrees need
not be signal, though: `among_kept.py` takes out what the choice of the kept tokens adds to it.

Shape letters: K rollouts, T steps, P parameters.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cogrpo_core.grpo.batch import all_steps, pick_steps
from cogrpo_core.grpo.objective import model_surrogate
from cogrpo_trainer.benchmarks.among_kept import logprob_among_kept
from cogrpo_trainer.train.config import TrainConfig
from cogrpo_trainer.train.launch import make_composite
from cogrpo_trainer.train.learner import likelihood_of, passes_of
from cogrpo_trainer.train.run import Experience, Trainer, place_of

Gradients = NDArray[np.float16]


def measure_signal(config: TrainConfig, rollouts: int) -> dict[str, Any]:
    """Agreement of the model's gradients over so many of the run's first rollouts, by step, and for
    the sum of the steps that are trained on, with its modules. Each step's is given for the
    likelihood among kept codes too. Keeps 2 K T P numbers of two bytes in memory.
    """
    with TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder), make_composite(config))
        found = [trainer.collect(place_of(config, number)) for number in range(rollouts)]
        gradients_KTP, among_KTP = (
            np.stack([step_gradients(trainer, one, among_kept=among) for one in found])
            for among in (False, True)
        )
    wanted = config.model_phase.trained_steps(config.num_inference_steps)
    sum_KP = gradients_KTP[:, wanted].astype(np.float32).sum(axis=1)
    return {
        "samples": config.model_phase.batch_size,
        "rollouts": rollouts,
        "steps": [
            {
                "step": step,
                **agreement(gradients_KTP[:, step].astype(np.float32)),
                "among_kept": agreement(among_KTP[:, step].astype(np.float32)),
            }
            for step in range(gradients_KTP.shape[1])
        ],
        "sum": agreement(sum_KP),
        "modules": {
            name: agreement(sum_KP[:, places]) for name, places in _modules(trainer).items()
        },
    }


def step_gradients(trainer: Trainer, found: Experience, *, among_kept: bool = False) -> Gradients:
    """The loss's gradient of a rollout, step by step: [T, P]; nothing is changed.

    `among_kept` takes the likelihood that is free of the choice's mean, at a ratio of one.
    """
    sample_S, step_S = all_steps(found.batch)
    weights = [w for w in trainer.checkpoint.transformer.parameters() if w.requires_grad]
    rows = []
    for step in range(trainer.config.num_inference_steps):
        chosen = sample_S[found.valid_B[sample_S] & (step_S == step)]
        for weight in weights:
            weight.grad = None
        accumulate = _accumulate_among_kept if among_kept else _accumulate
        accumulate(trainer, found, chosen, torch.full_like(chosen, step))
        rows.append(torch.cat([_flat_gradient(weight) for weight in weights]).half().numpy())
    return np.stack(rows)


def _accumulate(trainer: Trainer, found: Experience, sample_M: Tensor, step_M: Tensor) -> None:
    trainer.learners["model"].accumulate(
        found.batch, sample_M, step_M, found.advantage_B, found.conditions
    )


def _accumulate_among_kept(
    trainer: Trainer, found: Experience, sample_M: Tensor, step_M: Tensor
) -> None:
    model, config = trainer.checkpoint.transformer, trainer.config
    seed_B = torch.tensor([each.seed for each in found.rollout.trajectories])
    for index in passes_of(found.batch, sample_M, step_M, found.conditions, config.learner_batch):
        steps = pick_steps(found.batch, sample_M[index], step_M[index], model.config.mask_token_id)
        tokens = likelihood_of(model, steps, found.conditions)
        among_K = logprob_among_kept(tokens, steps, seed_B)
        level = replace(tokens, logprob_K=among_K, logged_K=among_K.detach())
        phase = config.model_phase
        advantage_M = found.advantage_B[steps.sample_M]
        value_M = model_surrogate(level, advantage_M, phase.clip, phase.ratio).value_M
        (-value_M.sum() / len(sample_M)).backward()


def agreement(gradients_KP: NDArray[np.float32]) -> dict[str, float]:
    """The mean cosine of all pairs of rows, its standard error over pairs, and the mean norm."""
    norms = np.linalg.norm(gradients_KP, axis=1)
    unit_KP = gradients_KP / np.maximum(norms, 1e-20)[:, None]
    cosines = [float(unit_KP[a] @ unit_KP[b]) for a, b in combinations(range(len(unit_KP)), 2)]
    error = float(np.std(cosines) / np.sqrt(len(cosines)))
    return {"agreement": float(np.mean(cosines)), "error": error, "norm": float(norms.mean())}


def _flat_gradient(weight: Tensor) -> Tensor:
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
