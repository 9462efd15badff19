"""The options of `cogrpo serve`: what goes together, and what they become."""

import os
from pathlib import Path

import pytest
import torch

from cogrpo_server import cli, supervisor
from cogrpo_server.deployments import _scaling
from cogrpo_server.loading import load_pipeline
from cogrpo_server.settings import Dtype, Settings, SettingsError


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings with which the service would run."""
    found: list[Settings] = []
    monkeypatch.setattr(supervisor.Supervisor, "run", lambda self: found.append(self._settings))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    return found


def test_options_become_settings(served: list[Settings]) -> None:
    cli.serve()
    cli.serve(
        replicas=2,
        max_replicas=4,
        slots=3,
        queued_cost=600,
        dtype="bfloat16",
        retention_days=0.5,
        spool_mb=10,
    )
    plain, given = served
    assert (plain.replicas, plain.most_replicas, plain.threads) == (1, 1, 8)
    assert (plain.dtype, given.dtype) == (None, "bfloat16")
    assert (plain.retention_seconds, plain.spool_bytes) == (None, 256 * 2**20)
    assert (given.replicas, given.most_replicas, given.threads) == (2, 4, 2)
    assert (given.slots, given.queued_cost) == (3, 600)
    assert (given.retention_seconds, given.spool_bytes) == (43_200, 10 * 2**20)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="--retention-days"):
            cli.serve(retention_days=wrong)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"replicas": 2, "max_replicas": 1}, "--max-replicas 1 is less than --replicas 2"),
        ({"replicas": 2, "single_process": True}, "leave --single-process out"),
        ({"max_replicas": 2, "single_process": True}, "leave --single-process out"),
        ({"queued_cost": 511}, "--queued-cost must be at least 512"),
    ],
)
def test_what_does_not_go_together_is_one_clear_error(
    options: dict[str, int], words: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as refused:
        settings.check_replicas()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_more_replicas_come_when_all_slots_are_taken(tmp_path: Path) -> None:
    fixed = Settings(data_dir=tmp_path, replicas=3, max_replicas=3)
    fixed.check_replicas()
    assert _scaling(fixed) == {"num_replicas": 3}
    config = _scaling(Settings(data_dir=tmp_path, max_replicas=3, slots=5))["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (1, 3)
    assert config.target_ongoing_requests == 5
    assert 0 < config.upscale_delay_s < config.downscale_delay_s


@pytest.mark.parametrize(("dtype", "expected"), [(None, "float32"), ("bfloat16", "bfloat16")])
def test_the_dtype_of_the_weights(
    tiny_checkpoint: Path, tmp_path: Path, dtype: Dtype | None, expected: str
) -> None:
    """On a CPU they are float32 where nothing is said."""
    settings = Settings(data_dir=tmp_path, model=str(tiny_checkpoint), dtype=dtype)
    pipeline = load_pipeline(settings, "cpu")
    assert {str(p.dtype) for p in pipeline.checkpoint.transformer.parameters()} == {
        f"torch.{expected}"
    }


def test_the_decode_tile_reaches_the_pipeline(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, model=str(tiny_checkpoint), decode_tile=8)
    assert load_pipeline(settings, "cpu").decode_tile == 8


def test_compiled_steps_are_kept_with_the_services_data(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    settings = Settings(data_dir=tmp_path, model=str(tiny_checkpoint), compiled=True, slots=2)
    plain = load_pipeline(settings.model_copy(update={"compiled": False}), "cpu")
    with torch.compiler.set_stance("force_eager"):  # no kernels are made
        pipeline = load_pipeline(settings, "cpu")
        (one,) = pipeline("a star", seed=1, output_type="tokens").trajectories
    assert pipeline.checkpoint.transformer.fixed_shapes
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    (other,) = plain("a star", seed=1, output_type="tokens").trajectories
    assert (one.tokens == other.tokens).all()
