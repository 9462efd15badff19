"""The learner against the straightforward way (baseline.py): time, memory, equal gradients.

Shape letters: B trajectories, M steps of a pass, S steps of all, N image tokens, H W token grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cogrpo_core.grpo.batch import (
    Steps,
    TrajectoryBatch,
    all_steps,
    collate,
    pick_steps,
)
from cogrpo_core.grpo.likelihood import action_likelihood
from cogrpo_core.models.schedule_policy import SchedulePolicy, SchedulePolicyConfig
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_trainer.benchmarks import baseline
from cogrpo_trainer.benchmarks.interleave import peak_bytes, timed
from cogrpo_trainer.train.conditions import Conditions
from cogrpo_trainer.train.learner import likelihood_of, passes_of
from cogrpo_trainer.train.rollouts import Ask, sample

PROMPTS = (
    "a red circle left of a blue square",
    "three green stars",
    "a large yellow ring",
    "two purple hearts",
)
PASS = 16
"""Steps of the straightforward learner's pass."""


class _Task(Protocol):
    """Two ways to the same gradients of some steps; each adds them to the weights."""

    weights: dict[str, nn.Parameter]

    def straightforward(self, size: int) -> None: ...

    def cogrpo(self, size: int) -> None: ...


@dataclass(frozen=True)
class _Rollout:
    """A rollout in groups, and the weight of each step's log-probability in the loss."""

    pipe: CoGRPOPipeline
    batch: TrajectoryBatch
    conditions: Conditions
    sample_S: Tensor
    step_S: Tensor
    weight_S: Tensor

    def of_step(self, step: int) -> "_Rollout":
        """One step of each trajectory alone."""
        keep_S = self.step_S == step
        columns = self.sample_S[keep_S], self.step_S[keep_S], self.weight_S[keep_S]
        return _Rollout(self.pipe, self.batch, self.conditions, *columns)

    def passes(self, size: int) -> Iterator[tuple[Steps, Tensor]]:
        """`size` steps a pass, with their weights."""
        for index in torch.arange(len(self.step_S)).split(size):
            yield self.steps(index), self.weight_S[index]

    def distinct(self, size: int) -> Iterator[tuple[Steps, Tensor]]:
        """`size` different states a pass, as the learner cuts them, with their weights."""
        for index in passes_of(self.batch, self.sample_S, self.step_S, self.conditions, size):
            yield self.steps(index), self.weight_S[index]

    def steps(self, index: Tensor) -> Steps:
        mask = self.pipe.checkpoint.transformer.config.mask_token_id
        return pick_steps(self.batch, self.sample_S[index], self.step_S[index], mask)


class _ModelTask:
    """Gradients of the model's likelihood to all of its weights."""

    def __init__(self, rollout: _Rollout) -> None:
        self.rollout = rollout
        self.model = rollout.pipe.checkpoint.transformer.requires_grad_(True)
        self.weights = dict(self.model.named_parameters())

    def straightforward(self, size: int) -> None:
        """By full logits."""
        for steps, weight_M in self.rollout.passes(size):
            with baseline.definitions():
                rows = self.rollout.conditions.rows(self.model, steps.sample_M)
                logprob_MN, filled_MN = baseline.logprobs(self.model, steps, *rows)
                (logprob_MN * filled_MN * weight_M[:, None]).sum().backward()

    def cogrpo(self, size: int) -> None:
        """As the learner takes them."""
        for steps, weight_M in self.rollout.distinct(size):
            found = likelihood_of(self.model, steps, self.rollout.conditions)
            (found.per_step(found.logprob_K, len(steps)) * weight_M).sum().backward()


class _ScheduleTask:
    """Gradients of the schedule's likelihood to the policy's weights, the model frozen."""

    def __init__(self, rollout: _Rollout) -> None:
        self.rollout = rollout
        self.model = rollout.pipe.checkpoint.transformer
        policy = rollout.pipe.checkpoint.schedule_policy
        assert policy is not None
        self.policy = policy
        self.weights = dict(self.policy.named_parameters())

    def straightforward(self, size: int) -> None:
        """By another pass of the model for what the policy reads."""
        for steps, weight_M in self.rollout.passes(size):
            with baseline.definitions(), torch.no_grad():
                text, _ = self.rollout.conditions.rows(self.model, steps.sample_M)
                state_MHW = steps.state_MN.unflatten(1, steps.grid)
                inner = baseline.inner_states(self.model, state_MHW, steps.remaining_M, text)
            self._learn(steps, inner.permute(0, 3, 1, 2), weight_M)

    def cogrpo(self, size: int) -> None:
        """From what the rollout kept."""
        for steps, weight_M in self.rollout.distinct(size):
            assert steps.features_MDhw is not None
            self._learn(steps, steps.features_MDhw, weight_M)

    def _learn(self, steps: Steps, features_MDhw: Tensor, weight_M: Tensor) -> None:
        found = action_likelihood(self.policy, steps, features_MDhw)
        (found.logprob_M * weight_M).sum().backward()


def compare_learner(
    pipe: CoGRPOPipeline,
    *,
    steps: int,
    groups: int,
    group_size: int,
    rounds: int,
    learner_batch: int,
) -> dict[str, Any]:
    """Forward and backward over a rollout in groups, to the gradients of all weights: of the model
    from all steps and from the first alone, and of the schedule from all steps.

    The straightforward way takes 16 steps a pass, the learner `learner_batch`; with 16 it is
    listed too. `gradient_gap` is the largest difference of a gradient, relative to the largest
    entry of its tensor.
    """
    rollout = _rollout(pipe, steps=steps, groups=groups, group_size=group_size)
    tasks: dict[str, _Task] = {
        "model": _ModelTask(rollout),
        "model, first step": _ModelTask(rollout.of_step(0)),
        "schedule": _ScheduleTask(rollout),
    }
    return {name: _compare(task, rounds, learner_batch, pipe) for name, task in tasks.items()}


def _compare(task: _Task, rounds: int, learner_batch: int, pipe: CoGRPOPipeline) -> dict[str, Any]:
    variants = {
        "straightforward": lambda: task.straightforward(PASS),
        "cogrpo, 16 steps a pass": lambda: task.cogrpo(PASS),
        "cogrpo": lambda: task.cogrpo(learner_batch),
    }

    def fresh(run: Any) -> Any:
        def once() -> None:
            _clear(task.weights)
            run()

        return once

    found = timed({name: fresh(run) for name, run in variants.items()}, rounds)
    gradients, peaks = {}, {}
    for name, run in variants.items():
        _clear(task.weights)
        run()
        gradients[name] = {n: p.grad for n, p in task.weights.items() if p.grad is not None}
        # A second backward pass adds to gradients that exist: what it takes beyond them.
        peaks[name] = peak_bytes(run, pipe.device)
        gradients[name] = {n: 0.5 * g for n, g in gradients[name].items()}
    _clear(task.weights)
    names = [name for name in variants if name != "straightforward"]
    return {
        "seconds": found.seconds,
        "faster": {name: found.ratio("straightforward", name) for name in names},
        "peak_bytes": peaks,
        "memory": {name: peaks[name] / peaks["straightforward"] for name in names},
        "gradient_gap": {
            name: _gap(gradients["straightforward"], gradients[name]) for name in names
        },
    }


def _clear(weights: dict[str, nn.Parameter]) -> None:
    for weight in weights.values():
        weight.grad = None


def _rollout(pipe: CoGRPOPipeline, *, steps: int, groups: int, group_size: int) -> _Rollout:
    """Explored trajectories of an untrained policy, with what it read."""
    model = pipe.checkpoint.transformer
    config = SchedulePolicyConfig.for_width(model.config.dim)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = SchedulePolicy(config).to(pipe.device)
    learned = CoGRPOPipeline(
        replace(pipe.checkpoint, schedule_policy=policy), samples_per_pass=pipe.samples_per_pass
    )
    prompts = [prompt for prompt in PROMPTS[:groups] for _ in range(group_size)]
    made = sample(
        learned, Ask(tuple(prompts), tuple(range(len(prompts))), steps, True, keep_features=True)
    )
    batch = collate(made.trajectories, made.features_BTDhw).to(pipe.device)
    sample_S, step_S = all_steps(batch)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(sample_S), generator=generator).to(pipe.device)
    weight = torch.randn(len(order), generator=generator).to(pipe.device)
    conditions = Conditions(pipe.checkpoint, made.trajectories)
    return _Rollout(learned, batch, conditions, sample_S[order], step_S[order], weight)


def _gap(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    assert expected.keys() == found.keys()
    return max(
        float((found[name] - g).abs().max() / g.abs().max().clamp(min=1e-12))
        for name, g in expected.items()
    )
