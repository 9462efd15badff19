"""The alternating cycle on a tiny model: what each phase changes, gate, faults, exact resume."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cogrpo_core.inputs import MAX_IMAGES_PER_CALL
from cogrpo_core.models.checkpoint import load_checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.trajectory import Trajectory
from cogrpo_trainer.state import StateError, load_state
from cogrpo_trainer.train import learner
from cogrpo_trainer.train.config import ConfigError
from cogrpo_trainer.train.learner import NotFiniteError
from cogrpo_trainer.train.rollouts import Ask, LocalSampler
from cogrpo_trainer.train.run import Trainer, place_of
from tests.trainer.train.conftest import composite


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.trained.parameters().items()}


def raw(trajectory: Trajectory) -> np.ndarray:
    assert trajectory.raw_actions is not None
    return trajectory.raw_actions


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_places_follow_the_cycle(make_config):
    config = make_config(cycles=2)
    parts = [place_of(config, i) for i in range(config.iterations)]
    assert [each.part for each in parts] == ["model", "model", "schedule", "schedule"] * 2
    assert [each.cycle for each in parts] == [0] * 4 + [1] * 4
    assert [each.in_phase for each in parts] == [0, 1] * 4


def test_each_phase_trains_its_own_part(make_config, tmp_path):
    trainer = Trainer(make_config(), tmp_path, composite())
    for expected in ("model", "model", "schedule", "schedule"):
        before = weights(trainer)
        done = trainer.step()
        assert done.place.part == expected
        assert changed(before, weights(trainer)) == {expected}


def test_joint_training_moves_both(make_config, tmp_path):
    trainer = Trainer(make_config(mode="joint"), tmp_path, composite())
    before = weights(trainer)
    trainer.step()
    assert changed(before, weights(trainer)) == {"model", "schedule"}


def test_naive_grpo_is_the_policy_frozen_at_the_base_schedule(make_config, tmp_path):
    """Zero-initialised and at its mean, it gives the base schedule's tokens bit for bit."""
    trainer = Trainer(make_config(mode="model-only"), tmp_path, composite())
    trainer.step()
    done = trainer.step()
    again = CoGRPOPipeline(trainer.checkpoint, samples_per_pass=4)
    logged = done.rollout.trajectories
    # The weights have moved on since: both schedules are run with those of now.
    texts, seeds = [t.prompt for t in logged], [t.seed for t in logged]
    options: dict[str, Any] = {"seed": seeds, "num_inference_steps": 3, "output_type": "tokens"}
    learned = again(texts, schedule="learned", **options).trajectories
    plain = again(texts, schedule="meissonic", **options).trajectories
    for a, b in zip(learned, plain, strict=True):
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.fill_step, b.fill_step)
        assert np.array_equal(a.actions, b.actions)


def test_the_schedule_phase_explores_and_the_model_phase_does_not(make_config, tmp_path):
    trainer = Trainer(make_config(), tmp_path, composite())
    model = trainer.step()
    trainer.step()
    schedule = trainer.step()
    assert not any(raw(t).any() for t in model.rollout.trajectories)
    assert all(raw(t).any() for t in schedule.rollout.trajectories)


def test_actions_that_are_not_trained_stay_the_base_schedules(make_config, tmp_path):
    config = make_config(
        mode="schedule-only", schedule_phase={"actions": ("guidance_scale",), "iterations": 3}
    )
    trainer = Trainer(config, tmp_path, composite())
    done = [trainer.step() for _ in range(3)][-1]
    for trajectory in done.rollout.trajectories:
        assert not raw(trajectory)[:, :3].any()
        assert raw(trajectory)[:, 3].all()


def test_rewards_rise(make_config, tmp_path):
    """Some iterations of the model's phase make the pictures brighter."""
    config = make_config(
        mode="model-only",
        rewards={"brightness": 1.0},
        model_phase={
            "iterations": 20,
            "group_size": 8,
            "batch_size": 16,
            "learning_rate": 1e-2,
            "ratio": "geometric_mean",
        },
    )
    trainer = Trainer(config, tmp_path, composite())
    means = [float(trainer.step().scores.by_reward["brightness"].mean()) for _ in range(20)]
    assert np.mean(means[-5:]) > np.mean(means[:5]) + 0.1


def test_ratios_are_one_at_the_first_update(make_config, tmp_path):
    trainer = Trainer(make_config(), tmp_path, composite())
    for _ in range(4):
        done = trainer.step()
        (update,) = done.updates
        assert update.values["ratio"] == pytest.approx(1.0, abs=1e-4)
        assert update.values["clip_fraction"] == 0
        assert done.gate.token_gap < 1e-4
        assert done.gate.action_gap < 1e-4


@pytest.mark.parametrize(("decay", "after"), [(0, [1, 1, 1, 1, 1]), (4, [1, 0.75, 0.5, 0.25, 0])])
def test_the_rate_rises_over_the_warm_up_and_may_fall(make_config, tmp_path, decay, after):
    phase = {"warmup": 3, "decay": decay}
    trainer = Trainer(make_config(cycles=4, model_phase=phase), tmp_path, composite())
    (optimizer,) = trainer.learners["model"].optimizers
    full = trainer.config.model_phase.learning_rate
    rates: list[float] = []
    while len(rates) < 8:
        if trainer.step().place.part == "model":
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([full * share for share in (1 / 3, 2 / 3, 1, *after)])


def test_a_run_stops_where_it_is_told_to_and_goes_on(make_config, tmp_path):
    config = make_config(cycles=2, save_every=100)
    trainer = Trainer(config, tmp_path, composite())
    trainer.run(until=4)
    assert trainer.iteration == 4
    again = Trainer(config, tmp_path, composite())
    assert again.iteration == 4 and not changed(weights(trainer), weights(again))
    again.run()
    assert again.iteration == config.iterations == 8


def test_several_updates_move_the_ratio(make_config, tmp_path):
    trainer = Trainer(make_config(model_phase={"updates": 3}), tmp_path, composite())
    done = trainer.step()
    assert len(done.updates) == 3
    assert done.updates[0].values["ratio_distance"] < 1e-4
    assert done.updates[2].values["ratio_distance"] > 1e-4


def test_groups_without_spread_change_nothing(make_config, tmp_path):
    class Constant:
        name, version = "constant", "1"

        def __call__(self, images, prompts):
            return np.ones(len(images), np.float32)

    config = make_config(rewards={"constant": 1.0})
    trainer = Trainer(config, tmp_path, composite(constant=Constant()))
    before = weights(trainer)
    done = trainer.step()
    assert done.advantages.groups_dropped == 2
    assert not changed(before, weights(trainer))


def test_a_reward_that_raises_is_masked(make_config, tmp_path):
    class Broken:
        name, version = "broken", "1"

        def __call__(self, images, prompts):
            raise OSError("no scorer here")

    config = make_config(rewards={"brightness": 0.5, "broken": 0.5})
    trainer = Trainer(config, tmp_path, composite(broken=Broken()))
    done = trainer.step()
    assert done.advantages.failed == {"brightness": 0, "broken": 4}
    assert done.advantages.valid_PG.any()


def test_updates_that_are_not_finite_are_skipped_and_then_stop_the_run(
    make_config, tmp_path, monkeypatch
):
    config = make_config(model_phase={"iterations": 6}, max_skipped=2)
    trainer = Trainer(config, tmp_path, composite())
    trainer.step()
    trainer.save()
    learner = trainer.learners["model"]
    before = weights(trainer)
    forward = learner.loss.forward

    def infinite(*args):
        loss, watched = forward(*args)
        return loss * float("nan"), watched

    monkeypatch.setattr(learner.loss, "forward", infinite)
    done = trainer.step()
    assert done.updates[0].skipped
    assert not changed(before, weights(trainer))
    with pytest.raises(NotFiniteError, match="2 model updates in a row"):
        trainer.step()
    state = load_state(tmp_path / "state")
    assert state is not None
    assert state.step == 1


def test_an_exploding_gradient_is_skipped(make_config, tmp_path):
    trainer = Trainer(make_config(max_gradient=1e-12), tmp_path, composite())
    before = weights(trainer)
    assert trainer.step().updates[0].skipped
    assert not changed(before, weights(trainer))


def test_kl_holds_the_model_back(make_config, tmp_path):
    moved = []
    for i, weight in enumerate((0.0, 10.0)):
        config = make_config(
            mode="model-only", kl_weight=weight, model_phase={"iterations": 6, "updates": 2}
        )
        trainer = Trainer(config, tmp_path / str(i), composite())
        done = [trainer.step() for _ in range(6)]
        moved.append(done)
    assert all(update.values["kl"] == 0 for update in moved[0][-1].updates)
    assert moved[1][0].updates[0].values["kl"] == pytest.approx(0, abs=1e-5)
    assert moved[1][-1].updates[-1].values["kl"] > 1e-6


def test_lora_starts_at_the_model_and_merges(make_config, tmp_path):
    config = make_config(mode="model-only", model_phase={"lora_rank": 2, "iterations": 3})
    base = load_checkpoint(config.model)
    trainer = Trainer(config, tmp_path, composite())
    names = trainer.trained.parameters()
    assert all("lora_" in name for name in names if name.startswith("model."))
    options: dict[str, Any] = {"seed": 3, "num_inference_steps": 3, "output_type": "tokens"}
    fresh = CoGRPOPipeline(trainer.checkpoint)("a ring", schedule="learned", **options)
    plain = CoGRPOPipeline(base)("a ring", schedule="meissonic", **options)
    assert np.array_equal(fresh.trajectories[0].tokens, plain.trajectories[0].tokens)
    for _ in range(3):
        trainer.step()
    trainer.export(tmp_path / "checkpoint")
    merged = CoGRPOPipeline.from_pretrained(tmp_path / "checkpoint")
    now = CoGRPOPipeline(trainer.checkpoint)
    a = merged("a ring", schedule="learned", **options).trajectories[0]
    b = now("a ring", schedule="learned", **options).trajectories[0]
    assert np.array_equal(a.tokens, b.tokens)
    assert np.abs(a.token_logprob - b.token_logprob).max() < 1e-4
    assert np.abs(a.token_logprob - plain.trajectories[0].token_logprob).max() > 1e-4


def test_the_average_is_exported(make_config, tmp_path):
    trainer = Trainer(make_config(ema=0.5, mode="schedule-only"), tmp_path, composite())
    start = weights(trainer)
    trainer.step()
    after = weights(trainer)
    trainer.export(tmp_path / "checkpoint")
    policy = load_checkpoint(tmp_path / "checkpoint").schedule_policy
    assert policy is not None
    exported = policy.state_dict()
    name = "last.bias"
    expected = 0.5 * start[f"schedule.{name}"] + 0.5 * after[f"schedule.{name}"]
    assert torch.allclose(exported[name], expected, atol=1e-7)
    assert torch.equal(weights(trainer)[f"schedule.{name}"], after[f"schedule.{name}"])


def test_resumed_after_every_iteration_the_weights_are_the_same(make_config, tmp_path):
    phase = {"updates": 2, "step_share": 0.5, "warmup": 3, "decay": 4}
    config = make_config(ema=0.5, cycles=2, model_phase=phase)
    whole = Trainer(config, tmp_path / "whole", composite())
    whole.run()
    for _ in range(config.iterations):
        trainer = Trainer(config, tmp_path / "parts", composite())
        trainer.step()
        trainer.save()
    again = Trainer(config, tmp_path / "parts", composite())
    assert again.iteration == config.iterations
    assert not changed(weights(whole), weights(again))
    for name, value in whole.average.values.items():
        assert torch.equal(value, again.average.values[name])


RUNNER = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from cogrpo_trainer.train.config import TrainConfig
from cogrpo_trainer.train.run import Trainer
from tests.trainer.train.conftest import composite
config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text())
trainer = Trainer(config, Path(sys.argv[2]), composite())
print("ready", trainer.iteration, flush=True)
trainer.run(lambda done: print("done", done.place.iteration, flush=True))
"""


def test_killed_and_resumed_it_gives_the_same_weights(make_config, tmp_path):
    """SIGKILL at three moments of a run in a process of its own."""
    config = make_config(cycles=2)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", textwrap.dedent(RUNNER)]
    command += [str(tmp_path / "config.json"), str(tmp_path / "killed")]
    for lines, pause in ((2, 0.0), (3, 0.05)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path.cwd())
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        process.stdout.close()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    whole = Trainer(config, tmp_path / "whole", composite())
    whole.run()
    killed = Trainer(config, tmp_path / "killed", composite())
    assert killed.iteration == config.iterations
    assert not changed(weights(whole), weights(killed))


def test_another_runs_folder_is_refused(make_config, tmp_path):
    Trainer(make_config(), tmp_path, composite()).save()
    with pytest.raises(StateError, match=r"another config \(model_phase.clip was 0.2, is 0.1\)"):
        Trainer(make_config(model_phase={"clip": 0.1}), tmp_path, composite())
    Trainer(make_config(cycles=4), tmp_path, composite())  # more of the same is fine


def test_a_checkpoint_of_another_model_is_refused(make_config, tmp_path):
    config = make_config()
    Trainer(config, tmp_path, composite()).save()
    other = replace(load_checkpoint(config.model), fingerprint="0" * 64)
    with pytest.raises(StateError, match="another base"):
        Trainer(config, tmp_path, composite(), checkpoint=other)


def test_an_empty_list_of_prompts_is_a_clear_error(make_config, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        Trainer(make_config(prompts=str(empty)), tmp_path / "run", composite())
    with pytest.raises(ConfigError, match="cannot be read"):
        Trainer(make_config(prompts=str(tmp_path / "none")), tmp_path / "run", composite())


def test_rollouts_are_the_services_own(make_config, tmp_path):
    """A training trajectory replays in the plain pipeline."""
    trainer = Trainer(make_config(), tmp_path, composite())
    ask = trainer._ask(place_of(trainer.config, 2))
    rollout = LocalSampler(trainer.checkpoint, samples_per_pass=4)(ask)
    pipe = CoGRPOPipeline(trainer.checkpoint, samples_per_pass=4)
    assert all(pipe.verify(t).differing_tokens == 0 for t in rollout.trajectories)


def test_a_rollout_may_be_larger_than_a_call_of_the_pipeline(make_config, tmp_path):
    trainer = Trainer(make_config(), tmp_path, composite())
    seeds = tuple(range(MAX_IMAGES_PER_CALL + 2))
    ask = Ask(("a red circle",) * len(seeds), seeds, num_inference_steps=2, explore=False)
    sampler = LocalSampler(trainer.checkpoint, samples_per_pass=8)
    rollout = sampler(ask)
    assert [t.seed for t in rollout.trajectories] == list(seeds)
    assert len(rollout.images) == len(seeds)
    last = replace(ask, prompts=ask.prompts[-2:], seeds=ask.seeds[-2:])
    assert np.array_equal(sampler(last).images, rollout.images[-2:])


def test_features_that_the_rollout_kept_are_those_of_another_pass(
    make_config, tmp_path, monkeypatch
):
    def run(keep: bool, folder: str) -> dict[str, torch.Tensor]:
        phase = {"keep_features": keep, "updates": 2}
        config = make_config(mode="schedule-only", schedule_phase=phase)
        trainer = Trainer(config, tmp_path / folder, composite())
        before = weights(trainer)
        trainer.run()
        assert changed(before, weights(trainer)) == {"schedule"}
        return weights(trainer)

    recomputed = run(False, "recomputed")
    monkeypatch.setattr(learner, "policy_features", None)  # a call would fail
    kept = run(True, "kept")
    assert all(torch.allclose(recomputed[name], kept[name], atol=1e-5) for name in kept)
