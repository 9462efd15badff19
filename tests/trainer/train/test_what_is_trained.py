"""Which steps and weights a phase trains, and how far its gradients agree."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cogrpo_core.grpo.batch import all_steps
from cogrpo_trainer.benchmarks import signal
from cogrpo_trainer.train.config import ConfigError, Part, TrainConfig, load_config
from cogrpo_trainer.train.fleet import Fleet
from cogrpo_trainer.train.learner import Learner
from cogrpo_trainer.train.lora import BLOCKS
from cogrpo_trainer.train.run import Trainer, place_of
from tests.trainer.train.conftest import composite

MakeConfig = Callable[..., TrainConfig]
VALID = torch.tensor([True, True, False, True])


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        ({}, 3),
        ({"step_share": 0.34}, 2),
        ({"step_share": 0.5}, 2),
        ({"steps": [0, 1]}, 2),
        ({"steps": [0, -1, 2]}, 2),
        ({"steps": [0]}, 1),
        ({"steps": [0, 1], "step_share": 0.5}, 1),
    ],
)
def test_steps_of_samples_with_a_signal(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, Any], each: int
) -> None:
    trainer = Trainer(make_config(model_phase=settings), tmp_path, composite())
    batch = trainer.collect(place_of(trainer.config, 0)).batch
    generator = torch.Generator().manual_seed(0)
    sample, step = trainer.learners["model"]._chosen(batch, VALID, generator)
    assert sample.unique(return_counts=True)[1].tolist() == [each] * 3  # of three steps
    assert 2 not in sample
    assert len({(int(a), int(b)) for a, b in zip(sample, step, strict=True)}) == 3 * each
    assert set(step.tolist()) <= {at % 3 for at in settings.get("steps", range(3))}


@pytest.mark.parametrize(
    ("num_steps", "trained"), [(1, [0]), (2, [1]), (3, [1, 2]), (5, [1, 2, 4])]
)
def test_steps_are_named_from_both_ends(
    make_config: MakeConfig, num_steps: int, trained: list[int]
) -> None:
    phase = make_config(model_phase={"steps": [1, 2, -1]}).model_phase
    assert phase.trained_steps(num_steps) == trained


def test_where_no_named_step_is_all_are_trained(make_config: MakeConfig) -> None:
    assert make_config(model_phase={"steps": [7]}).model_phase.trained_steps(3) == [0, 1, 2]


@pytest.mark.parametrize("keep", [False, True])
def test_jointly_each_part_learns_from_its_own_steps(
    make_config: MakeConfig, tmp_path: Path, keep: bool
) -> None:
    """At the first update all ratios are 1, so the gradients are those of the phases alone."""
    config = make_config(
        mode="joint",
        model_phase={"steps": [0], "batch_size": 8, "ratio": "geometric_mean"},
        schedule_phase={"keep_features": keep},
    )
    trainer = Trainer(config, tmp_path, composite())
    found = trainer.collect(place_of(config, 0))
    assert (found.batch.features_BTDhw is not None) is keep
    transformer, policy = trainer.checkpoint.transformer, trainer.checkpoint.schedule_policy
    assert policy is not None
    modules: dict[Part, torch.nn.Module] = {"model": transformer, "schedule": policy}

    def gradients(learner: Learner, wanted: Part) -> tuple[int, torch.Tensor]:
        for module in modules.values():
            module.zero_grad()
        generator = torch.Generator().manual_seed(0)
        sample, step = learner._chosen(found.batch, found.valid_B, generator)
        learner.accumulate(found.batch, sample, step, found.advantage_B, found.conditions)
        flat = [w.grad.flatten() for w in modules[wanted].parameters() if w.grad is not None]
        return len(sample), torch.cat(flat)

    joint = trainer.learners["joint"]
    for part in modules:
        alone = Learner(part, transformer, policy, config, Fleet())
        steps, expected = gradients(alone, part)
        all_of_them, mine = gradients(joint, part)
        assert expected.abs().max() > 0
        assert all_of_them == 3 * steps if part == "model" else all_of_them == steps
        # Each is a mean over the steps of its learner.
        difference = (mine * all_of_them - expected * steps).abs().max()
        assert difference < 1e-4 * float((expected * steps).abs().max())


def test_jointly_the_last_pass_has_gradients_of_both_parts(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There data-parallel learners exchange them, whatever steps each of them has."""
    config = make_config(mode="joint", model_phase={"steps": [0], "batch_size": 8})
    trainer = Trainer(config, tmp_path, composite())
    found = trainer.collect(place_of(config, 0))
    learner = trainer.learners["joint"]
    sample, step = all_steps(found.batch)
    later = step > 0  # the model learns from the first alone
    of_passes: list[bool] = []

    def watched(*given: Any) -> Any:
        of_passes.append(given[-1])
        return learner.loss(*given)

    monkeypatch.setattr(learner, "module", watched)
    advantage = torch.ones_like(found.advantage_B)
    chosen = sample[later], step[later]
    loss, _ = learner.accumulate(found.batch, *chosen, advantage, found.conditions)
    assert of_passes[0] is False and of_passes[-1] is True
    gradients = [w.grad for w in trainer.checkpoint.transformer.parameters() if w.grad is not None]
    assert gradients and all(not gradient.any() for gradient in gradients)
    assert np.isfinite(loss)


def test_blocks_alone_move(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(mode="model-only", model_phase={"blocks_only": True})
    trainer = Trainer(config, tmp_path, composite())
    before = {
        name: weight.detach().clone()
        for name, weight in trainer.checkpoint.transformer.named_parameters()
    }
    trainer.step()
    moved = {
        name.split(".")[0]
        for name, weight in trainer.checkpoint.transformer.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert moved == set(BLOCKS)
    trainer.save()
    again = Trainer(config, tmp_path, composite())
    for name, weight in trainer.checkpoint.transformer.named_parameters():
        assert torch.equal(weight, again.checkpoint.transformer.get_parameter(name))


def test_blocks_and_low_rank_exclude_each_other() -> None:
    overrides = ["model_phase.blocks_only=true", "model_phase.lora_rank=4"]
    with pytest.raises(ConfigError, match="blocks_only"):
        load_config("shapes", None, overrides)


def test_gradients_of_the_steps_add_up(make_config: MakeConfig, tmp_path: Path) -> None:
    trainer = Trainer(make_config(mode="model-only"), tmp_path, composite())
    found = trainer.collect(place_of(trainer.config, 0))
    by_step = torch.from_numpy(signal.step_gradients(trainer, found)).float()
    trainer.checkpoint.transformer.zero_grad()
    sample, step = all_steps(found.batch)
    keep = found.valid_B[sample]
    assert keep.any()
    trainer.learners["model"].accumulate(
        found.batch, sample[keep], step[keep], found.advantage_B, found.conditions
    )
    gradients = [w.grad for w in trainer.checkpoint.transformer.parameters()]
    whole = torch.cat([one.flatten() for one in gradients if one is not None])
    assert len(whole) == by_step.shape[1]
    # A step's gradient is of its mean, and all steps have as many samples.
    torch.testing.assert_close(by_step.mean(0), whole, atol=2e-3 * float(whole.abs().max()), rtol=0)


def test_agreement_is_the_share_of_signal() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=20_000)
    noise = rng.normal(size=(6, 20_000))
    for scale, expected in ((0.0, 0.0), (1.0, 0.5), (1e3, 1.0)):
        found = signal.agreement((scale * base + noise).astype(np.float32))
        assert found["agreement"] == pytest.approx(expected, abs=0.02)


def test_the_signal_of_a_run(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "make_composite", lambda _: composite())
    found = signal.measure_signal(make_config(mode="model-only"), 2)
    assert [row["step"] for row in found["steps"]] == [0, 1, 2]
    assert {"transformer_blocks.0", "mlm_layer", "embed"} <= found["modules"].keys()
    assert all(-1.01 <= part["agreement"] <= 1.01 for part in found["modules"].values())
