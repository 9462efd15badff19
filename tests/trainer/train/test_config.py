"""Settings: presets, overlays, and one clear line for everything that cannot work."""

import json

import pytest
from typer.testing import CliRunner

from cogrpo_client.cli import build_app
from cogrpo_core.schedule import ACTION_COLUMNS
from cogrpo_trainer.train.config import ConfigError, load_config, presets


def test_presets_are_whole():
    assert presets() == ["meissonic-1b", "shapes"]
    for name in presets():
        load_config(name)


def test_the_papers_run_is_the_papers():
    """Section 5.1 and appendix A, line by line."""
    config = load_config("meissonic-1b")
    model, schedule = config.model_phase, config.schedule_phase
    assert config.model == "MeissonFlow/Meissonic"
    assert len(config.prompts) == 2  # HPDv2 and ImageReward
    assert config.rewards == {"image-reward": 0.5, "hpsv2": 0.5}
    assert (config.mode, config.cycles) == ("alternate", 3)
    assert (config.num_inference_steps, config.kl_weight) == (48, 0.0)
    assert config.betas == (0.9, 0.95)
    assert config.ema == 0.0 and config.min_spread == 0.0  # neither is the paper's

    assert config.cycles * model.iterations == 300
    assert (model.learning_rate, model.weight_decay) == (1e-5, 0.02)
    assert (model.group_size, model.batch_size) == (6, 96)
    assert model.ratio == "product"  # Eq. 19
    assert not model.lora_rank and not model.blocks_only

    assert abs(config.cycles * schedule.iterations - 200) < config.cycles  # no multiple of 3
    assert (schedule.learning_rate, schedule.weight_decay) == (1e-4, 0.0)
    assert (schedule.group_size, schedule.batch_size) == (8, 256)
    assert schedule.actions == ACTION_COLUMNS  # all four of A

    for phase in (model, schedule):
        assert (phase.updates, phase.step_share, phase.steps) == (1, 1.0, ())


def test_file_and_command_line_lie_over_the_preset(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("cycles = 2\n[model_phase]\nlearning_rate = 1e-4\n[rewards]\nmine = 1.0\n")
    config = load_config("shapes", file, ["model_phase.clip=0.1", "mode=joint", "cycles=5"])
    assert config.cycles == 5
    assert config.mode == "joint"
    assert config.model_phase.learning_rate == 1e-4
    assert config.model_phase.clip == 0.1
    assert config.model_phase.group_size == load_config("shapes").model_phase.group_size
    assert config.rewards == {"mine": 1.0}  # replaced as a whole


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learnin_rate=1", "unknown setting 'learnin_rate'"),
        ("model_phase.lr=1", r"unknown setting 'model_phase\.lr'"),
        ("model_phase.group_size=1", "a group needs at least 2"),
        ("model_phase.batch_size=50", "no multiple of group_size"),
        ("schedule_phase.actions=['speed']", "unknown action 'speed'"),
        ("mode=fast", "mode"),
        ("rewards.shapes-align=0", "Field required|positive weight|nothing can be learned"),
        ("model_phase.clip=1.5", "clip"),
        ("workers=5", "cannot share"),
        ("nonsense", "not of the form"),
        ("model_phase.learning_rate=nan", "learning_rate"),
    ],
)
def test_what_cannot_work_is_one_line(setting, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("shapes", None, [setting])
    assert "\n" not in str(caught.value)


def test_unknown_preset_names_the_known():
    with pytest.raises(ConfigError, match="meissonic-1b, shapes"):
        load_config("nothing")


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("shapes", tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("cycles =")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
        load_config("shapes", bad)


def test_dry_run_prints_the_resolved_settings():
    result = CliRunner().invoke(
        build_app("train"), ["train", "--dry-run", "--set", "cycles=7", "--preset", "meissonic-1b"]
    )
    assert result.exit_code == 0
    assert json.loads(result.stdout)["cycles"] == 7
