"""How the steps of an update are cut into forward passes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from cogrpo_trainer.train.learner import cut_passes


@given(st.lists(st.integers(-1, 4), max_size=60), st.integers(1, 8))
def test_every_step_once_and_no_pass_too_large(same: list[int], size: int) -> None:
    same_M = torch.tensor(same, dtype=torch.int64)
    parts = cut_passes(same_M, size)
    indices = torch.cat(parts).tolist() if parts else []
    assert sorted(indices) == list(range(len(same)))
    for part in parts:
        kinds = [same[i] for i in part]
        assert 1 <= len({k for k in kinds if k >= 0}) + kinds.count(-1) <= size
    homes = [
        {number for number, part in enumerate(parts) for i in part if same[i] == kind}
        for kind in set(same) - {-1}
    ]
    assert all(len(home) == 1 for home in homes)
    states = len(set(same) - {-1}) + same.count(-1)
    assert len(parts) == -(-states // size)
