"""Muon: orthogonal updates, the same as torch's own to bfloat16's precision."""

from typing import Any

import pytest
import torch

from cogrpo_trainer.pretrain.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 8, 24), (1, 24, 8)])
def test_singular_values_end_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), torch.float32))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3


def test_it_is_torchs_muon():
    torch.manual_seed(0)
    start = [torch.randn(8, 24), torch.randn(24, 8), torch.randn(8, 24)]
    ours = [torch.nn.Parameter(each.clone()) for each in start]
    theirs = [torch.nn.Parameter(each.clone()) for each in start]
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.95}
    pair = (Muon(ours, **options), torch.optim.Muon(theirs, **options))
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert float((a - before).detach().norm()) > 0.5
        assert float((a - b).detach().norm()) < 0.05 * float((a - before).detach().norm())
