"""The step with joined weights is the transformer's own, and holds no weight twice."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cogrpo_core.models.joined import JoinedSteps
from cogrpo_core.models.transformer import MeissonicTransformer
from tests.core.conftest import TRANSFORMER


def plain(piece: Callable[..., Any]) -> Callable[..., Any]:
    return piece


def transformer(*, layers: tuple[int, int] = (2, 3), downsample: bool = True):
    sizes = {"num_layers": layers[0], "num_single_layers": layers[1]}
    halved = {"downsample": downsample, "upsample": downsample}
    config = TRANSFORMER.model_copy(update=sizes | halved)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MeissonicTransformer(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("layers", [(2, 3), (1, 0), (0, 2), (0, 0)])
@pytest.mark.parametrize("downsample", [True, False])
def test_states_are_the_transformers(layers, downsample) -> None:
    model = transformer(layers=layers, downsample=downsample)
    conditioning = model.condition(torch.randn(3, 7, 24), torch.randn(3, 32), torch.randn(3, 5))
    tokens, remaining = torch.randint(0, 40, (3, 6, 8)), torch.tensor([0, 5, 63])
    expected = model.states(tokens, remaining, conditioning)
    steps = JoinedSteps(model, plain)
    found = steps(tokens, remaining, conditioning, model.rope(7, 6, 8))
    torch.testing.assert_close(found.hidden, expected.hidden, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.features, expected.features, atol=2e-5, rtol=1e-4)
    again = model.states(tokens, remaining, conditioning)
    torch.testing.assert_close(again.hidden, expected.hidden, atol=2e-5, rtol=1e-4)


def test_weights_are_held_once_and_are_saved_as_before(tmp_path: Path) -> None:
    model = transformer()
    before = copy.deepcopy(model.state_dict())
    steps = JoinedSteps(model, plain)
    attn = model.single_transformer_blocks[0].attn
    joined = steps.single[0].all_in.weight
    assert attn.to_k.weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
    assert model.state_dict().keys() == before.keys()
    model.save_pretrained(tmp_path)
    again = MeissonicTransformer.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in before.items())
