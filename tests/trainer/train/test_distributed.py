"""Two learners under Ray Train make the update of one, to float tolerance; so do rollout actors."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from cogrpo_trainer.state import load_state
from cogrpo_trainer.train.distributed import train_distributed
from cogrpo_trainer.train.rollouts import ActorSampler
from cogrpo_trainer.train.run import Trainer, place_of
from tests.trainer.train.conftest import composite


@pytest.fixture(scope="module", autouse=True)
def cluster():
    # At Ray's nice level of 15 the workers of a busy machine would never get on.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    root = str(Path(__file__).parents[3])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()


@pytest.mark.timeout(280)
@pytest.mark.slow  # Ray Train starts two workers
@pytest.mark.parametrize("sharded", [False, True])
def test_two_learners_are_one(make_config, tmp_path, sharded):
    plain = make_config()
    alone = Trainer(plain, tmp_path / "alone", composite())
    alone.run()
    train_distributed(make_config(workers=2, sharded=sharded), tmp_path / "together", composite)
    saved = load_state(tmp_path / "together" / "state")
    assert saved is not None
    assert saved.step == plain.iterations
    start = Trainer(plain, tmp_path / "start", composite()).trained.parameters()
    moved = 0.0
    for name, value in alone.trained.parameters().items():
        update = (value - start[name]).detach()
        difference = saved.parts["weights"][name] - value.detach()
        # Adam moves a weight whose gradient is nothing but rounding by its sign, so that single
        # ones may differ; all together hardly do.
        assert difference.norm() <= 0.01 * update.norm() + 1e-5, name
        assert (difference.abs() > 2e-4).float().mean() <= 0.002, name
        moved = max(moved, float(update.abs().max()))
    assert moved > 1e-3  # there was something to agree on


@pytest.mark.timeout(120)
def test_rollout_actors_give_the_same_trajectories(make_config, tmp_path):
    trainer = Trainer(make_config(rollout_batch=1), tmp_path, composite())
    trainer.step()  # weights that the actors have to be given
    ask = replace(trainer._ask(place_of(trainer.config, 2)), keep_features=True)
    here = trainer.sampler(ask)
    actors = ActorSampler(trainer.checkpoint, samples_per_pass=1, actors=2)
    there = actors(ask)
    assert np.array_equal(here.images, there.images)
    assert here.features_BTDhw is not None and there.features_BTDhw is not None
    assert here.features_BTDhw.shape[:2] == (len(ask.seeds), ask.num_inference_steps)
    assert torch.allclose(here.features_BTDhw, there.features_BTDhw, atol=1e-4)
    for a, b in zip(here.trajectories, there.trajectories, strict=True):
        assert np.array_equal(a.tokens, b.tokens)
        assert np.allclose(a.token_logprob, b.token_logprob, atol=1e-5)
