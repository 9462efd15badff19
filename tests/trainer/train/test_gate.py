"""The ratio-equals-one gate: what it stops, what it names, and what it lets pass."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cogrpo_trainer.train.gate import RatioGateError, _enlargement
from cogrpo_trainer.train.run import Trainer
from tests.trainer.train.conftest import composite


def test_the_gate_names_part_and_step(make_config, tmp_path):
    trainer = Trainer(make_config(), tmp_path, composite())
    inner = trainer.sampler

    def stale(ask):
        """A sampler with other weights than the learner's: the classic fault."""
        with torch.no_grad():
            trainer.checkpoint.transformer.mlm_layer.conv2.weight.add_(0.05)
        rollout = inner(ask)
        with torch.no_grad():
            trainer.checkpoint.transformer.mlm_layer.conv2.weight[::2].sub_(0.05)
        return rollout

    trainer.sampler = stale
    with pytest.raises(RatioGateError, match=r"at step \d+ the model's log-probability"):
        trainer.step()
    assert trainer.iteration == 0


def test_the_gates_floor_grows_with_guidance_and_temperature():
    actions = torch.tensor([[0.5, 1.0, 1.0, 1.0], [0.5, 0.5, 1.0, 4.0], [0.5, 4.0, 1.0, 0.5]])
    steps: Any = SimpleNamespace(actions_M4=actions)
    assert _enlargement(steps).tolist() == [1.0, 14.0, 1.0]


def test_the_gate_sees_a_changed_schedule(make_config, tmp_path):
    trainer = Trainer(make_config(mode="schedule-only"), tmp_path, composite())
    inner = trainer.sampler

    def other_policy(ask):
        rollout = inner(ask)
        with torch.no_grad():
            trainer.trained.policy.last.bias.add_(0.1)
        return rollout

    trainer.sampler = other_policy
    with pytest.raises(RatioGateError, match="the schedule's log-probability"):
        trainer.step()
