"""Prompts of training: from the evaluated tasks or a file, a function of seed and iteration."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cogrpo_core.shapes.suites import SUITES, suite
from cogrpo_trainer.train.config import ConfigError, TrainConfig
from cogrpo_trainer.train.prompts import SHAPES, Prompts, rollout_seeds
from cogrpo_trainer.train.run import Trainer
from tests.trainer.train.conftest import composite


def test_the_worlds_prompts_repeat_and_are_none_of_the_held_out_ones() -> None:
    prompts = Prompts(SHAPES)
    drawn = [text for i in range(40) for text in prompts.draw(10, seed=3, iteration=i)]
    assert drawn[:10] == prompts.draw(10, seed=3, iteration=0)
    assert drawn[:10] != drawn[10:20] != prompts.draw(10, seed=4, iteration=1)
    assert not {each.text for name in SUITES for each in suite(name, 200)} & set(drawn)
    assert sum(" and " in text for text in drawn) > 40  # pairs are asked for, too
    assert len(set(drawn)) > 250


def test_a_files_prompts_come_without_repeats_as_far_as_it_reaches(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a\n\n b \nc\na\n")
    drawn = Prompts(str(path)).draw(5, seed=0, iteration=0)
    assert sorted(drawn[:3]) == ["a", "b", "c"] and set(drawn[3:]) < {"a", "b", "c"}
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Prompts(str(path))


def test_every_sample_has_a_seed_of_its_own() -> None:
    seeds = rollout_seeds(64, seed=1, iteration=2)
    assert len(set(seeds)) == 64 and seeds == rollout_seeds(64, seed=1, iteration=2)
    assert seeds != rollout_seeds(64, seed=1, iteration=3)


def test_a_run_cuts_what_its_encoder_cannot_read_and_goes_on_with_a_mixture(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("a red circle " * 20)
    (tmp_path / "more.json").write_text('["a blue star", {"prompt": "A blue  star"}]')
    names = (str(tmp_path / "long.txt"), str(tmp_path / "more.json"))
    config = make_config(prompts=names)
    trainer = Trainer(config, tmp_path / "run", composite())
    encoder = trainer.checkpoint.text_encoder
    done = trainer.step()
    drawn = {each.prompt for each in done.rollout.trajectories}
    assert len(drawn) == 2 and "a blue star" in drawn
    assert max(map(encoder.token_count, drawn)) <= encoder.max_length
    trainer.save()
    assert Trainer(config, tmp_path / "run", composite()).iteration == 1
