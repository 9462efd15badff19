"""Steps on a GPU: nobody waits, graphs give what plain steps give, and the same seed the same."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cogrpo_core.ahead import course, look_ahead
from cogrpo_core.compiled import compile_steps
from cogrpo_core.denoise import Turn, denoise, denoise_turn, start_samples
from cogrpo_core.models.checkpoint import Checkpoint, load_checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.schedule import build_schedule
from cogrpo_core.trajectory import Trajectory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GRID, STEPS = (8, 8), 6


def run(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
    """A compiler that makes no kernels, which would take a minute: the CUDA graphs are tested."""
    return graph.forward


@pytest.fixture(scope="module")
def checkpoint(model_folder: Path) -> Checkpoint:
    return load_checkpoint(model_folder, device="cuda")


@pytest.fixture
def compiled(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    torch._dynamo.reset()
    transformer = copy.deepcopy(checkpoint.transformer)
    compile_steps(transformer, backend=run)
    yield replace(checkpoint, transformer=transformer)
    torch._dynamo.reset()


def pictures(checkpoint: Checkpoint, count: int) -> list[Trajectory]:
    made = CoGRPOPipeline(checkpoint)(
        [f"a star {i}" for i in range(count)],
        seed=list(range(count)),
        num_inference_steps=STEPS,
        output_type="tokens",
    )
    return made.trajectories


def turns(checkpoint: Checkpoint, count: int) -> Iterator[Turn]:
    """All turns of some pictures, as the engine makes them."""
    pipe = CoGRPOPipeline(checkpoint)
    conditions = pipe.condition(pipe.plan([f"a star {i}" for i in range(count)], seed=0))
    table = build_schedule("meissonic", STEPS, guidance_scale=3.0).actions_T4
    mask = checkpoint.transformer.config.mask_token_id
    samples = start_samples(
        list(range(count)), [table] * count, GRID[0] * GRID[1], mask, device="cuda"
    )
    each = course(table, GRID[0] * GRID[1])
    for step in range(STEPS):
        ahead = look_ahead([each] * count, [step] * count)
        turn = denoise_turn(checkpoint.transformer, samples, *conditions, ahead, grid=GRID)
        samples = turn.samples
        yield turn


@pytest.mark.parametrize("name", ["checkpoint", "compiled"])
def test_the_host_never_waits_in_a_step(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(name)
    list(turns(checkpoint, 3))  # kernels and graphs are made
    remaining = turns(checkpoint, 3)
    next(remaining)
    torch.cuda.set_sync_debug_mode("error")
    try:
        last = list(remaining)[-1]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    mask = checkpoint.transformer.config.mask_token_id
    assert (last.samples.tokens_BN != mask).all()


def test_the_loop_over_steps_waits_only_before_the_first(checkpoint: Checkpoint) -> None:
    pipe = CoGRPOPipeline(checkpoint)
    conditions = pipe.condition(pipe.plan(["a star", "a ring"], seed=0))
    table = build_schedule("meissonic", STEPS, guidance_scale=3.0).actions_T4
    mask = checkpoint.transformer.config.mask_token_id

    def loop() -> Iterator[Turn]:
        samples = start_samples([1, 2], [table] * 2, GRID[0] * GRID[1], mask, device="cuda")
        return denoise(checkpoint.transformer, samples, *conditions, grid=GRID)

    list(loop())
    steps = loop()
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(steps)) == STEPS - 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("count", [1, 3])
def test_graphs_give_the_states_of_plain_steps(checkpoint, compiled, count) -> None:
    pipe = CoGRPOPipeline(checkpoint)
    text, _ = pipe.condition(pipe.plan([f"a star {i}" for i in range(count)], seed=0))
    for seed in range(3):  # the memory of a graph is written anew each time
        torch.manual_seed(seed)
        tokens = torch.randint(0, 40, (count, *GRID), device="cuda")
        remaining = torch.randint(0, 64, (count,), device="cuda")
        with torch.no_grad():
            expected = checkpoint.transformer.states(tokens, remaining, text)
            found = compiled.transformer.states(tokens, remaining, text)
        torch.testing.assert_close(found.hidden, expected.hidden, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(found.features, expected.features, atol=2e-3, rtol=2e-3)


def test_two_versions_in_turn_keep_their_own_weights(checkpoint, compiled) -> None:
    """Their graphs share the memory of what lives inside a step."""
    other = copy.deepcopy(compiled.transformer)
    plain = copy.deepcopy(checkpoint.transformer)
    with torch.no_grad():
        for transformer in (other, plain):
            transformer.mlm_layer.conv1.weight.mul_(-1.0)
    pipe = CoGRPOPipeline(checkpoint)
    text, _ = pipe.condition(pipe.plan("a star", seed=0))
    inputs = (
        torch.full((1, *GRID), 39, device="cuda"),
        torch.tensor([3], device="cuda"),
        text,
    )
    with torch.no_grad():
        expected = [m.states(*inputs).hidden for m in (checkpoint.transformer, plain)]
        for _ in range(2):
            for transformer, hidden in zip((compiled.transformer, other), expected, strict=True):
                found = transformer.states(*inputs).hidden
                torch.testing.assert_close(found, hidden, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", ["checkpoint", "compiled"])
def test_the_same_seed_gives_the_same_picture(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(name)
    for one, other in zip(pictures(checkpoint, 3), pictures(checkpoint, 3), strict=True):
        assert (one.tokens == other.tokens).all() and (one.fill_step == other.fill_step).all()


def test_pictures_are_those_of_the_cpu_but_for_ties(checkpoint, model) -> None:
    for one, other in zip(pictures(checkpoint, 2), pictures(model, 2), strict=True):
        assert (one.tokens == other.tokens).mean() > 0.9
