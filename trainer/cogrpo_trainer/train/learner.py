"""The learner: from a rollout with advantages to optimiser steps, for one phase of the cycle.

The objective is cogrpo_core/grpo's; here are what is trained, how a batch is cut, and what makes an
update be skipped. run.py decides which phase runs when.

Shape letters: B trajectories, M steps, T steps of a trajectory.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cogrpo_core.grpo.batch import (
    Steps,
    TrajectoryBatch,
    all_steps,
    distinct_passes,
    first_states,
    pick_steps,
)
from cogrpo_core.grpo.likelihood import (
    TokenLikelihood,
    action_likelihood,
    policy_features,
    token_likelihood,
)
from cogrpo_core.grpo.objective import (
    Surrogate,
    action_kl,
    model_surrogate,
    schedule_surrogate,
    token_kl,
)
from cogrpo_core.models.schedule_policy import SchedulePolicy
from cogrpo_core.models.transformer import MeissonicTransformer
from cogrpo_trainer.train.conditions import Conditions
from cogrpo_trainer.train.config import Part, Phase, TrainConfig
from cogrpo_trainer.train.fleet import Fleet, without_sync


class NotFiniteError(RuntimeError):
    """Updates were skipped too often; the last saved state is good."""


class Loss(nn.Module):
    """The loss of one phase, summed over steps; a module, so that data-parallel wrappers take it.

    Only the phase's own part has gradients: the other is frozen, and its ratio is one (Eq. 21).
    """

    def __init__(
        self,
        part: Part,
        transformer: MeissonicTransformer,
        policy: SchedulePolicy,
        config: TrainConfig,
        reference: MeissonicTransformer | None,
    ) -> None:
        super().__init__()
        self.part: Part = part
        self.config = config
        trained: dict[Part, list[nn.Module]] = {
            "model": [transformer],
            "schedule": [policy],
            "joint": [transformer, policy],
        }
        self.trained = nn.ModuleList(trained[part])
        # In a tuple, so that frozen modules are no children of this one.
        self.parts = (transformer, policy, reference)

    def forward(
        self, steps: Steps, advantage_M: Tensor, conditions: Conditions, model: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over steps of -surrogate + beta KL, and sums of what there is to watch.

        `model` is whether the model's part is trained at these steps.
        """
        transformer, policy, reference = self.parts
        config = self.config
        if not model:
            features = steps.features_MDhw
            if features is None:
                with torch.no_grad():
                    conditional, _ = conditions.rows(transformer, steps.sample_M)
                text_M = conditions.texts(steps.sample_M)[: len(steps)]
                distinct = distinct_passes(steps, text_M)
                features = policy_features(transformer, steps, conditional, distinct)
            actions = action_likelihood(policy, steps, features)
            found = schedule_surrogate(
                actions.logprob_M, steps.action_logprob_M, advantage_M, config.schedule_phase.clip
            )
            # The base schedule, mean zero, is the reference.
            kl_M = action_kl(
                actions.mean_M4,
                torch.zeros_like(actions.mean_M4),
                steps.used_M4,
                policy.config.sigma,
            )
            return self._sum(found, kl_M)
        tokens = likelihood_of(transformer, steps, conditions, features=self.part == "joint")
        other_M = None
        if tokens.features_MDhw is not None:
            actions = action_likelihood(policy, steps, tokens.features_MDhw)
            other_M = actions.logprob_M - steps.action_logprob_M
        phase = config.model_phase
        found = model_surrogate(tokens, advantage_M, phase.clip, phase.ratio, other_M)
        kl_M = torch.zeros_like(advantage_M)
        if reference is not None:
            with torch.no_grad():
                before = likelihood_of(reference, steps, conditions)
            kl_M = token_kl(tokens, before, len(steps))
        return self._sum(found, kl_M)

    def _sum(self, found: Surrogate, kl_M: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.config.kl_weight * kl_M - found.value_M).sum()
        return loss, {
            "ratio": found.ratio_M.sum(),
            "ratio_distance": (found.ratio_M - 1).abs().sum(),
            "clip_fraction": found.clipped_M.sum(),
            "kl": kl_M.detach().sum(),
        }


def likelihood_of(
    transformer: MeissonicTransformer,
    steps: Steps,
    conditions: Conditions,
    *,
    features: bool = False,
) -> TokenLikelihood:
    """The model's likelihood of steps of a rollout, with passes that are the same made once."""
    rows = conditions.rows(transformer, steps.sample_M)
    distinct = distinct_passes(steps, conditions.texts(steps.sample_M))
    return token_likelihood(transformer, steps, *rows, features=features, distinct=distinct)


@dataclass(frozen=True)
class UpdateReport:
    """One optimiser step."""

    loss: float
    gradient_norm: float
    values: Mapping[str, float]
    """Means over the update's steps: ratio, its distance from 1, clip fraction, KL."""
    skipped: bool
    """The loss or gradient was not finite, or exploding, and nothing was changed."""


class Learner:
    """One phase's loss and optimisers over weights that it shares with the sampler."""

    def __init__(
        self,
        part: Part,
        transformer: MeissonicTransformer,
        policy: SchedulePolicy,
        config: TrainConfig,
        fleet: Fleet,
        reference: MeissonicTransformer | None = None,
    ) -> None:
        self.part: Part = part
        self.config = config
        self.fleet = fleet
        self.mask_token_id = transformer.config.mask_token_id
        self.loss = Loss(part, transformer, policy, config, reference)
        self.module = fleet.wrap(self.loss)
        self.optimizers: list[torch.optim.Optimizer] = []
        if part != "schedule":
            self.optimizers.append(_adam(transformer, config.model_phase, config))
        if part != "model":
            self.optimizers.append(_adam(policy, config.schedule_phase, config))
        self.skipped_in_a_row = 0

    @property
    def phase(self) -> Phase:
        """The settings of this part; a joint one takes the model's."""
        config = self.config
        return config.schedule_phase if self.part == "schedule" else config.model_phase

    def updates(
        self,
        batch: TrajectoryBatch,
        advantage_B: Tensor,
        valid_B: Tensor,
        conditions: Conditions,
        generator: torch.Generator,
    ) -> Iterator[UpdateReport]:
        """The phase's optimiser steps over one rollout, in random order of its steps.

        Trajectories without a signal are left out. Raises `NotFiniteError` after `max_skipped`
        skipped updates in a row.
        """
        sample_S, step_S = self._chosen(batch, valid_B, generator)
        for index in _parts(len(sample_S), self.phase.updates, generator):
            report = self._update(batch, sample_S[index], step_S[index], advantage_B, conditions)
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if report.skipped else 0
            yield report
            if self.skipped_in_a_row >= self.config.max_skipped:
                raise NotFiniteError(
                    f"{self.skipped_in_a_row} {self.part} updates in a row were not finite or "
                    f"exploding (the last: loss {report.loss:.3g}, gradient norm "
                    f"{report.gradient_norm:.3g}); lower the learning rate and resume: the last "
                    "saved state is whole"
                )

    def _chosen(
        self, batch: TrajectoryBatch, valid_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The steps of trajectories with a signal that the phase trains on."""
        sample_S, step_S = all_steps(batch)
        keep_S = valid_B[sample_S]
        inside_BT = steps_of(self.phase, batch)
        if self.part == "joint":
            inside_BT = inside_BT | steps_of(self.config.schedule_phase, batch)
        if self.phase.step_share < 1:
            rank_BT = torch.rand(inside_BT.shape, generator=generator)
            rank_BT = rank_BT.masked_fill(~inside_BT, 2.0).argsort(1).argsort(1)
            wanted_B = (self.phase.step_share * inside_BT.sum(1)).ceil()
            inside_BT = rank_BT < wanted_B[:, None]
        keep_S = keep_S & inside_BT.to(keep_S.device)[sample_S, step_S]
        return sample_S[keep_S], step_S[keep_S]

    def accumulate(
        self,
        batch: TrajectoryBatch,
        sample_M: Tensor,
        step_M: Tensor,
        advantage_B: Tensor,
        conditions: Conditions,
    ) -> tuple[float, dict[str, float]]:
        """Adds the gradients of the mean loss over the M steps, `learner_batch` different states of
        them a pass.

        Gives the loss, and means over the steps of what there is to watch.
        """
        count = self.fleet.sum(float(len(sample_M)))
        # Data-parallel workers average their gradients; each gives its sum over the whole count.
        scale = self.fleet.world / max(count, 1.0)
        parts = self._passes(batch, sample_M, step_M, conditions)
        nothing = sample_M.new_zeros(1), self.part != "schedule"
        # The last pass exchanges gradients, so each learner's must have those of all weights.
        unfinished = bool(parts) and parts[-1][1] != nothing[1]
        passes = self.fleet.max(len(parts) + unfinished)
        total: dict[str, float] = {}
        loss_sum = 0.0
        for number in range(passes):
            # Learners take part in as many passes as the busiest one: what is left of them is idle.
            idle = number >= len(parts)
            rows, model = nothing if idle else parts[number]
            chosen = (rows, rows) if idle else (sample_M[rows], step_M[rows])
            steps = pick_steps(batch, *chosen, self.mask_token_id)
            with without_sync(self.module, number + 1 < passes):
                advantage_M = advantage_B[steps.sample_M] * steps.weight_M
                loss, watched = self.module(steps, advantage_M, conditions, model)
                loss = loss * (0.0 if idle else scale)
                loss.backward()
            loss_sum += float(loss.detach())
            for name, value in watched.items():
                total[name] = total.get(name, 0.0) + (0.0 if idle else float(value))
        means = {name: self.fleet.sum(value) / max(count, 1.0) for name, value in total.items()}
        return self.fleet.sum(loss_sum) / self.fleet.world, means

    def _passes(
        self, batch: TrajectoryBatch, sample_M: Tensor, step_M: Tensor, conditions: Conditions
    ) -> list[tuple[Tensor, bool]]:
        """Indices of the steps of each pass, and whether the model's part is trained there.

        Jointly, steps that the model does not learn from are apart and come first, as gradients of
        both parts are wanted in the last pass.
        """
        model_M = torch.full_like(sample_M, self.part != "schedule", dtype=torch.bool)
        if self.part == "joint":
            model_M = steps_of(self.phase, batch).to(sample_M.device)[sample_M, step_M]
        parts: list[tuple[Tensor, bool]] = []
        for model in (False, True):
            rows = (model_M == model).nonzero()[:, 0]
            if len(rows):
                cut = passes_of(
                    batch, sample_M[rows], step_M[rows], conditions, self.config.learner_batch
                )
                parts += [(rows[index], model) for index in cut]
        return parts

    def _update(
        self,
        batch: TrajectoryBatch,
        sample_M: Tensor,
        step_M: Tensor,
        advantage_B: Tensor,
        conditions: Conditions,
    ) -> UpdateReport:
        loss, means = self.accumulate(batch, sample_M, step_M, advantage_B, conditions)
        parameters = [p for p in self.loss.trained.parameters() if p.grad is not None]
        norm = _clip_gradients(parameters, self.config.max_grad_norm)
        fine = math.isfinite(loss) and norm <= self.config.max_gradient  # a NaN is not
        if fine and means:
            for optimizer in self.optimizers:
                _set_rate(optimizer)
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return UpdateReport(loss, norm, means, skipped=not fine)


def _adam(module: nn.Module, phase: Phase, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    group = {"params": parameters, "warmup": phase.warmup, "decay": phase.decay}
    group["highest"] = phase.learning_rate
    return torch.optim.AdamW(
        [group], lr=phase.learning_rate, betas=config.betas, weight_decay=phase.weight_decay
    )


def _set_rate(optimizer: torch.optim.Optimizer) -> None:
    """Sets the rate of the next step: rising, then the highest, or falling to zero."""
    done = max((int(state.get("step", 0)) for state in optimizer.state.values()), default=0)
    for group in optimizer.param_groups:
        share = 1.0
        if done < group["warmup"]:
            share = (done + 1) / group["warmup"]
        elif group["decay"]:
            share = max(0.0, 1 - (done - group["warmup"]) / group["decay"])
        group["lr"] = group["highest"] * share


def _clip_gradients(parameters: list[nn.Parameter], largest: float) -> float:
    """Scales gradients down to a norm of `largest`; gives the norm before."""
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def steps_of(phase: Phase, batch: TrajectoryBatch) -> Tensor:
    """Which steps of each trajectory a phase trains on, [B,T]."""
    inside_BT = torch.zeros(batch.action_logprob_BT.shape, dtype=torch.bool)
    for row, num_steps in zip(inside_BT, batch.num_steps_B.tolist(), strict=True):
        row[phase.trained_steps(num_steps)] = True
    return inside_BT


def passes_of(
    batch: TrajectoryBatch, sample_M: Tensor, step_M: Tensor, conditions: Conditions, size: int
) -> list[Tensor]:
    """Indices of M steps of a rollout, cut into passes of at most `size` different states."""
    text_M = conditions.texts(sample_M)[: len(sample_M)]
    return cut_passes(first_states(text_M, step_M, batch.num_steps_B[sample_M]), size)


def cut_passes(same_M: Tensor, size: int) -> list[Tensor]:
    """Indices of M steps, cut into passes of at most `size` different states.

    Steps of one number in `same_M` have the same state; -1 is a state of its own.
    """
    order_M = same_M.argsort(stable=True, descending=True)
    sorted_M = same_M[order_M]
    new_M = torch.ones_like(sorted_M)
    new_M[1:] = (sorted_M[1:] != sorted_M[:-1]) | (sorted_M[1:] < 0)
    pass_M = (new_M.cumsum(0) - 1) // size
    return list(order_M.split(pass_M.bincount().tolist()))


def _parts(count: int, updates: int, generator: torch.Generator) -> list[Tensor]:
    """A random order of `count` steps, cut into `updates` parts that differ by one at most."""
    return list(torch.randperm(count, generator=generator).tensor_split(updates))
