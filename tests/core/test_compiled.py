"""Compiled steps give what plain ones give, in a bounded number of graphs.

The graphs are run as they are (no kernels are made: a compiler for CPUs takes minutes).
"""

import copy
from dataclasses import replace

import pytest
import torch

from cogrpo_core.compiled import bucket, compile_steps, warm_up
from cogrpo_core.models.transformer import Conditioning
from cogrpo_core.pipeline import CoGRPOPipeline

PIECES = 4
"""What comes before the blocks, a block of each kind, and what comes after."""


class Graphs:
    """A backend that counts the graphs it is given, and the rows of each call."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        self.made += 1
        return graph.forward


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(rows) for rows in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]


@pytest.mark.parametrize("learned", [False, True])
def test_pictures_are_the_same_and_graphs_are_few(model_with_policy, graphs, learned) -> None:
    twin = copy.deepcopy(model_with_policy.transformer)
    compile_steps(twin, backend=graphs)
    plain, fast = (
        CoGRPOPipeline(checkpoint, samples_per_pass=8)
        for checkpoint in (model_with_policy, replace(model_with_policy, transformer=twin))
    )
    assert twin.fixed_shapes and not model_with_policy.transformer.fixed_shapes
    schedule = "learned" if learned else "meissonic"
    for count in (1, 3):
        one, other = (
            pipe(
                [f"a star {i}" for i in range(count)],
                seed=list(range(count)),
                num_inference_steps=3,
                schedule=schedule,
                output_type="tokens",
            ).trajectories
            for pipe in (plain, fast)
        )
        for a, b in zip(one, other, strict=True):
            assert (a.tokens == b.tokens).all() and (a.fill_step == b.fill_step).all()
            assert abs(a.token_logprob - b.token_logprob).max() < 1e-4
    assert graphs.made == PIECES  # for 2 rows, and for 8 of which two fill it up


def test_warming_up_makes_all_graphs_and_another_versions_weights_need_none(model, graphs) -> None:
    transformer = copy.deepcopy(model.transformer)
    compile_steps(transformer, backend=graphs)
    pipe = CoGRPOPipeline(model)
    texts: Conditioning = pipe.encode("a star", 16, 16)
    warm_up(transformer, texts, (8, 8), 6)
    assert graphs.made == 2 * PIECES  # for one row, and for 2, 4 and 8
    compile_steps(transformer, backend=graphs)  # a second time changes nothing
    other = copy.deepcopy(transformer)
    with torch.no_grad():
        other.mlm_layer.layer_norm.weight.mul_(2.0)
    assert other.fixed_shapes
    inputs = torch.full((3, 8, 8), 39), torch.tensor([2, 2, 1]), texts.select([0, 0, 0])
    with torch.no_grad():
        found = other.states(*inputs).hidden
        expected = type(other).states(other, *inputs).hidden
        first = transformer.states(*inputs).hidden
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, first, atol=1e-2)
    assert graphs.made == 2 * PIECES
