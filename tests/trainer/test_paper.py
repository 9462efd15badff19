"""docs/paper.md: its commands are commands, and its figures are what the program computes."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch.nn.attention import SDPBackend, sdpa_kernel

from cogrpo_client.cli import build_app
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.models.meissonic import TRANSFORMER
from cogrpo_core.models.transformer import MeissonicTransformer
from cogrpo_trainer.benchmarks.paper import (
    decode_flops,
    empty_checkpoint,
    lines,
    pass_flops,
    plan_lines,
    training_flops,
)
from cogrpo_trainer.train.config import load_config
from cogrpo_trainer.train.memory import memory_plan
from cogrpo_trainer.train.run import fresh_policy

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("paper.md", "evaluation.md")]
PARAMETERS = 1_006_946_304


def calls() -> list[str]:
    """Every line of a code block that begins with `cogrpo`."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            found += [line for line in block.splitlines() if line.startswith("cogrpo ")]
    return found


def parsed(words: list[str]) -> list[str]:
    """The names of the commands that a call goes through; raises where it cannot be parsed."""
    benched = words[1] if words[0] == "bench" else None
    command: Any = typer.main.get_command(build_app(words[0], wanted_bench=benched))
    context = command.make_context("cogrpo", list(words))
    names = []
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
        context = command.make_context(name, rest, parent=context)
    return names


@pytest.mark.parametrize("call", calls())
def test_every_call_is_parsed_by_the_command(call: str) -> None:
    line = call.replace("$T", "16").replace("$GAMMA", "1.5")
    _, *words = shlex.split(line, comments=True)
    names = parsed(words)
    assert names[0] == words[0]
    if names == ["train"]:
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        preset = words[words.index("--preset") + 1]
        load_config(preset, None, overrides)


def test_what_cannot_be_parsed_is_found() -> None:
    for words in (["evaluate", "--sweet", "dpg"], ["train", "--set"], ["rewards", "convert", "a"]):
        with pytest.raises(typer.TyperException):
            parsed(words)


def test_the_pages_figures_are_those_that_are_computed() -> None:
    assert "\n".join(lines()) in PAGES[0].read_text()


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return empty_checkpoint()


def test_a_pass_at_full_size_is_what_the_blocks_matrices_are(checkpoint: Checkpoint) -> None:
    """By hand: 12 D^2 a position and block, attention, and the layers at both ends."""
    dim, inner, tokens, blocks = 1024, 1024, 4096, 14 + 28
    positions = inner + 77
    matrices = 12 * dim**2 * positions * blocks
    attention = 2 * positions**2 * dim * blocks
    ends = tokens * (2 * dim**2 + 8192 * dim) + inner * 10 * dim**2
    found = pass_flops(checkpoint.transformer)
    assert found == pytest.approx(2 * (matrices + attention + ends), rel=0.01)


def test_operations_on_meta_are_those_of_a_real_pass() -> None:
    small = TRANSFORMER.model_copy(
        update={
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 1,
            "joint_attention_dim": 128,
            "pooled_projection_dim": 128,
            "vocab_size": 80,
            "codebook_size": 64,
        }
    )
    with torch.device("meta"):
        empty = MeissonicTransformer(small).to("meta")
    with sdpa_kernel(SDPBackend.MATH):
        real = pass_flops(MeissonicTransformer(small), 16, 8)
    # On a CPU the real pass embeds each different token once, and has no text in its last block.
    assert pass_flops(empty, 16, 8) == pytest.approx(real, rel=0.15)


def test_decoding_grows_with_the_pixels(checkpoint: Checkpoint) -> None:
    assert decode_flops(checkpoint.vqvae, 32) == pytest.approx(
        4 * decode_flops(checkpoint.vqvae, 16), rel=1e-6
    )


def test_training_is_counted_pass_by_pass() -> None:
    config = load_config("meissonic-1b")
    model = 96 * 48 * (2 + 2 * 3) + 32 * 2
    schedule = 256 * 48 * (2 + 1) + 32 * 2
    assert training_flops(config, 1.0, 0.0) == 3 * (100 * model + 67 * schedule)
    alone = load_config("meissonic-1b", None, ["mode=model-only"])
    assert training_flops(alone, 1.0, 0.0) == 300 * model
    assert training_flops(alone, 0.0, 1.0) == 300 * 96


def test_the_memory_plan_of_the_1b_is_the_meta_devices_count(checkpoint: Checkpoint) -> None:
    config = load_config("meissonic-1b")
    counted = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in (
            ("transformer", checkpoint.transformer),
            ("text", checkpoint.text_encoder),
            ("pixels", checkpoint.vqvae),
            ("policy", fresh_policy(checkpoint, config)),
        )
    }
    assert counted["transformer"] == PARAMETERS
    assert (counted["text"], counted["pixels"]) == (354_032_640, 146_244_675)
    trained = counted["transformer"] + counted["policy"]
    plan = memory_plan(checkpoint, config, trained)
    assert plan.parts["weights of the model"] == 4 * PARAMETERS
    assert plan.parts["text encoder and VQ model"] == 4 * (counted["text"] + counted["pixels"])
    assert plan.parts["gradients and Adam's two moments"] == 12 * trained
    assert plan_lines(empty_checkpoint(), ())[0].startswith(f"{trained:,} trained")
    assert f"{counted['policy'] / 1e6:.1f}M" in PAGES[0].read_text()


def test_low_rank_training_fits_half_of_the_memory() -> None:
    def total(*overrides: str) -> float:
        return float(plan_lines(empty_checkpoint(), overrides)[-1].split()[0])

    whole, low = total(), total("model_phase.lora_rank=16")
    assert whole < 80 - 6 and low < 40 - 6  # GiB, beside the rewards
