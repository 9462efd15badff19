"""The daemon around its cycles: triggers, cancelling, errors, one of its kind."""

import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from cogrpo_core.exchange.training_cycles import Cycles
from cogrpo_core.exchange.training_records import TrainingAwayError
from cogrpo_core.exchange.trajectory_log import STREAM
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_trainer.daemon import daemon as daemon_module
from cogrpo_trainer.daemon.config import load_daemon_config
from cogrpo_trainer.train.config import ConfigError
from cogrpo_trainer.train.run import Trainer
from tests.conftest import RedisServer
from tests.trainer.daemon.online import daemon_config, log, make_daemon, served
from tests.trainer.daemon.test_cycle import ended, running


def test_a_cycle_is_cancelled_at_an_iteration(
    tiny_checkpoint: Path, tmp_path: Path, redis_server: RedisServer, monkeypatch: Any
) -> None:
    cycles = Cycles(tmp_path / "training")
    cycle_id = cycles.request("request").id
    step = Trainer.step

    def cancelled_at_the_second(trainer: Trainer) -> Any:
        if trainer.iteration == 1:
            cycles.cancel(cycle_id)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", cancelled_at_the_second)
    with running(daemon_config(tiny_checkpoint, tmp_path), tmp_path, redis_server.url):
        record = ended(cycles, cycle_id)
    assert (record.status, record.code, record.iteration) == ("cancelled", "cancelled", 2)
    assert record.policy_version is None
    assert not (tmp_path / "policies").exists()


def test_an_error_goes_back_to_the_last_state_and_then_fails(
    tiny_checkpoint: Path,
    tmp_path: Path,
    redis_server: RedisServer,
    connection: redis.Redis,
    pipe: CoGRPOPipeline,
    monkeypatch: Any,
) -> None:
    log(connection, served(pipe, "a lamp", [1, 2]))
    at: list[int] = []
    step = Trainer.step

    def fails_at_the_second(trainer: Trainer) -> Any:
        at.append(trainer.iteration)
        if trainer.iteration == 1:
            raise RuntimeError("no luck")
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", fails_at_the_second)
    with running(daemon_config(tiny_checkpoint, tmp_path), tmp_path, redis_server.url) as cycles:
        record = ended(cycles, cycles.request("request").id)
        other = ended(cycles, cycles.request("request", schedule_iterations=0).id)
    assert at == [0, 1, 1, 1, 0, 1, 1, 1]
    assert (record.status, record.code, record.attempts) == ("failed", "failed", 3)
    assert record.detail == "RuntimeError: no luck"
    assert other.id > record.id
    assert connection.xlen(STREAM) == 0  # the first state had them


@pytest.mark.parametrize("trigger", ["trajectories", "interval"])
def test_a_cycle_begins_by_itself(
    trigger: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    redis_server: RedisServer,
    connection: redis.Redis,
    pipe: CoGRPOPipeline,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(daemon_module, "COUNT_SECONDS", 0.02)
    begun = threading.Event()

    def step(trainer: Trainer) -> Any:
        begun.set()
        raise RuntimeError("far enough")

    monkeypatch.setattr(Trainer, "step", step)
    log(connection, served(pipe, "a lamp", [1, 2, 3]))
    settings = {"every_trajectories": 4} if trigger == "trajectories" else {"every_seconds": 0.05}
    config = daemon_config(tiny_checkpoint, tmp_path, **settings)
    with running(config, tmp_path, redis_server.url) as cycles:
        if trigger == "trajectories":
            assert not begun.wait(0.5)
            log(connection, served(pipe, "a lamp", [4]))
        assert begun.wait(60)
        assert cycles.records()[-1].trigger == trigger


def test_a_damaged_record_is_named_once_and_stops_cycles_until_it_is_removed(
    tiny_checkpoint: Path,
    tmp_path: Path,
    redis_server: RedisServer,
    monkeypatch: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = threading.Event()

    def step(trainer: Trainer) -> Any:
        begun.set()
        raise RuntimeError("far enough")

    monkeypatch.setattr(Trainer, "step", step)
    record = Cycles(tmp_path / "training").request("request")
    file = tmp_path / "training" / "cycles" / f"{record.id}.json"
    file.write_text("{")
    config = daemon_config(tiny_checkpoint, tmp_path, every_seconds=0.05)
    with running(config, tmp_path, redis_server.url):
        assert not begun.wait(1)
        file.unlink()
        assert begun.wait(60)
    said = [r.getMessage() for r in caplog.records if "is damaged" in r.getMessage()]
    assert len(said) == 1 and file.name in said[0]


def test_a_folder_has_one_trainer(
    tiny_checkpoint: Path, tmp_path: Path, redis_server: RedisServer, monkeypatch: Any
) -> None:
    monkeypatch.setattr("cogrpo_core.exchange.training_cycles._LOCK_SECONDS", 0.1)
    config = daemon_config(tiny_checkpoint, tmp_path)
    with Cycles(tmp_path / "training").attending() as ours:
        assert ours
        with pytest.raises(TrainingAwayError, match="another trainer"):
            make_daemon(config, tmp_path, redis_server.url).run()


def test_settings_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "loop.toml"
    file.write_text("staleness = 0\n[gate]\nprompts = 50\n[train.model_phase]\niterations = 3\n")
    config = load_daemon_config("shapes", file)
    assert (config.staleness, config.gate.prompts) == (0, 50)
    assert config.train.model_phase.iterations == 3
    assert config.train.num_inference_steps == 16  # what requests of the embedded model have
    file.write_text("[gate]\nprompt = 50\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'gate\.prompt'"):
        load_daemon_config("shapes", file)
    file.write_text("[train]\nworkers = 2\n")
    with pytest.raises(ConfigError, match="one process"):
        load_daemon_config("shapes", file)
