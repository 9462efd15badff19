"""The benchmarks compare what gives the same, and say so; not how fast this machine is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from cogrpo_core.models import meissonic
from cogrpo_core.models.vqvae import vq_config
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_trainer.benchmarks import (
    baseline,
    cli,
    kernels,
    profiles,
    random_model,
    random_runs,
    regression,
    turns,
)
from cogrpo_trainer.benchmarks.decode import compare_decode
from cogrpo_trainer.benchmarks.interleave import Timed, peak_bytes
from cogrpo_trainer.benchmarks.learner import compare_learner
from cogrpo_trainer.benchmarks.sampler import compare_sampler


@pytest.fixture
def pipe(tiny_checkpoint: Path) -> CoGRPOPipeline:
    return CoGRPOPipeline.from_pretrained(tiny_checkpoint)


def test_the_straightforward_forward_pass_is_the_models(pipe: CoGRPOPipeline) -> None:
    model = pipe.checkpoint.transformer
    conditional, _ = pipe.condition(pipe.plan("a star"))
    tokens = torch.randint(0, model.config.codebook_size, (1, 8, 8))
    with torch.no_grad(), baseline.definitions():
        plain = baseline.all_logits(model, tokens, torch.tensor([2]), conditional)
    ours = model.head(model.states(tokens, torch.tensor([2]), conditional).hidden)
    torch.testing.assert_close(plain, ours, atol=1e-4, rtol=0)


def test_the_straightforward_sampler_fills_every_token(pipe: CoGRPOPipeline) -> None:
    model = pipe.checkpoint.transformer
    conditions = pipe.condition(pipe.plan("a star", num_images_per_prompt=2))
    options: dict[str, Any] = {
        "grid": (8, 8),
        "num_steps": 3,
        "guidance": 3.0,
        "temperature": 1.0,
        "seed": 1,
    }
    tokens = baseline.sample(model, *conditions, **options)
    assert tokens.shape == (2, 64)
    assert int(tokens.max()) < model.config.codebook_size
    assert torch.equal(tokens, baseline.sample(model, *conditions, **options))


def test_sampler_and_learner_are_compared_on_equal_results(pipe: CoGRPOPipeline) -> None:
    sampler = compare_sampler(pipe, steps=3, images=2, rounds=1)
    assert sampler["logits_gap"] < 1e-4
    assert sampler["faster"]["cpu"]["median"] > 0
    pipe.checkpoint.transformer.requires_grad_(True)
    learner = compare_learner(pipe, steps=4, groups=2, group_size=4, rounds=1, learner_batch=4)
    assert learner.keys() == {"model", "model, first step", "schedule"}
    for part in learner.values():
        assert max(part["gradient_gap"].values()) < 1e-3
        assert max(part["memory"].values()) < 1
    memory = learner["model"]["memory"]
    assert memory["cogrpo"] < memory["cogrpo, 16 steps a pass"]


def test_a_decode_in_tiles_is_compared_with_a_whole_one(pipe: CoGRPOPipeline) -> None:
    config = vq_config(pipe.checkpoint.vqvae)
    options: dict[str, Any] = {"device": torch.device("cpu"), "images": 2, "rounds": 1}
    side = 48 * config.downscale
    found = compare_decode(config, pixels=side, tile=16, **options)
    assert set(found["peak_bytes"]) == {"whole", "tiles of 16"}
    assert 0 < found["memory"] < 0.5
    assert found["time"]["wall"]["median"] > 0
    with pytest.raises(ValueError, match="multiple"):
        compare_decode(config, pixels=side + 1, tile=16, **options)


def test_ratios_are_taken_within_rounds() -> None:
    rounds = {"a": [2.0, 8.0, 3.0], "b": [1.0, 2.0, 3.0]}
    ratio = Timed(rounds, rounds).ratio("a", "b")
    assert ratio["wall"] == {"median": 2.0, "lowest": 1.0, "highest": 4.0}


def test_peak_memory_is_what_is_held_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(1 << 18)

    def together() -> None:
        assert len([torch.ones(1 << 18) for _ in range(3)]) == 3

    device = torch.device("cpu")
    assert peak_bytes(one_after_the_other, device) == pytest.approx(1 << 20, rel=0.01)
    assert peak_bytes(together, device) == pytest.approx(3 << 20, rel=0.01)


def test_every_kernel_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"rows": 6, "codes": 32, "dim": 16, "samples": 2, "tokens": 16, "positions": 5}
    monkeypatch.setitem(kernels.SIZES, "cpu", small)
    found = kernels.compare_kernels(torch.device("cpu"), rounds=1, compiled=False)
    assert len(found["ops"]) == 9
    for row in found["ops"].values():
        assert row["faster"].keys() == {"eager"}
        assert row["seconds"]["cogrpo"]["wall"] > 0


def test_what_fell_is_named() -> None:
    expected = {"tolerance": 0.2, "ratios": {"sampler": 2.0, "learner": 1.5}}
    assert regression.slower({"sampler": 1.7, "learner": 9.0}, expected) == []
    lines = regression.slower({"sampler": 1.5}, expected)
    assert [line.split(":")[0] for line in lines] == ["sampler", "learner"]
    assert regression.slower({"sampler": float("nan"), "learner": 2.0}, expected)
    assert regression.committed()["ratios"].keys() == {
        "sampler",
        "learner",
        "learner memory",
        "learner, schedule",
    }


def test_the_commands_print_one_object(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cogrpo_trainer.benchmarks.cli.restart_with_allocator", lambda: None)
    app = typer.Typer()
    for command in (cli.sampler, cli.learner):
        app.command()(command)
    arguments = ["--model", str(tiny_checkpoint), "--steps", "3", "--rounds", "1", "--json"]
    result = CliRunner().invoke(app, ["sampler", *arguments, "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bench"] == "sampler"
    result = CliRunner().invoke(app, ["sampler", "--model", "nowhere"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_a_step_of_a_random_model_is_timed_each_way() -> None:
    seen: list[int] = []
    with torch.compiler.set_stance("force_eager"):  # no kernels are made
        found = turns.measure_turns(
            "random:tiny",
            device=torch.device("cpu"),
            dtype=torch.float32,
            batches=[1, 2],
            rounds=1,
            progress=lambda found: seen.append(len(found)),
        )
    assert seen == sorted(seen) and len(seen) == 4
    for way in ("eager", "graphed", "compiled"):
        for count in (1, 2):
            assert found[way][count]["turn"]["seconds"] > 0
            assert 0 < found[way][count]["states"]["share_of_matmul"] < 1
    assert max(found["graphed"]["gap"][1], found["compiled"]["gap"][1]) < 1e-3


def test_a_random_model_has_the_operations_of_the_public_one() -> None:
    config = meissonic.TRANSFORMER
    passes = random_model.pass_operations(config, (64, 64), joined=False)
    total = passes + random_model.head_operations(config, 4096)
    assert total == pytest.approx(1.48e12, rel=0.001)
    with pytest.raises(ValueError, match="random:1b"):
        random_model.random_model("random:huge", "cpu", torch.float32)


def test_a_random_models_sampler_and_learner_are_compared() -> None:
    made = random_model.random_model("random:tiny", "cpu", torch.float32)
    found = random_runs.compare_random_sampler(made, steps=3, images=2, rounds=1, compiled=False)
    assert found["alike"] and found["faster"]["wall"]["median"] > 0
    learned = random_runs.compare_random_learner(made, steps=2, rounds=1)
    assert learned["head_gradient_gap"] < 1e-4 and learned["memory"] < 1


def test_kernels_are_told_apart_by_name() -> None:
    names = {
        "void pytorch_flash::flash_fwd_kernel<...>": "attention",
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT": "matrix products",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n": "matrix products",
        "triton_per_fused_native_layer_norm_0": "compiled elementwise",
        "sample_kernel": "draw and re-mask",
        "void at::native::vectorized_elementwise_kernel<4, ...>": "other elementwise",
        "Memcpy DtoD (Device -> Device)": "copies",
        "something": "other",
    }
    assert {name: profiles.kind_of(name) for name in names} == names
