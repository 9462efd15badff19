"""The counter-based noise: known answers, ranges, laws and independence of its streams."""

import math

import pytest
import torch
from scipy import stats

from cogrpo_core.noise import (
    action_noise,
    philox_4x32,
    step_noise,
    to_gumbel,
    to_uniform,
    uniform_noise,
)


# The vectors of the Random123 distribution for philox4x32 with ten rounds.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, answer):
    seed = key[0] | key[1] << 32
    seed -= (seed >> 63) << 64  # the same 64 bits as a signed number
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    words = philox_4x32((c0, c1, c2, c3), torch.tensor(seed))
    assert tuple(int(word) for word in words) == answer


def test_noise_is_a_function_of_seed_step_and_position_alone():
    seeds, steps = torch.tensor([5, 9, 2**32 - 1]), torch.tensor([0, 3, 255])
    uniform, gumbel = step_noise(seeds, steps, 64)
    for b in range(3):
        alone = step_noise(seeds[b : b + 1], steps[b : b + 1], 256)
        assert torch.equal(alone[0][0, :64], uniform[b])
        assert torch.equal(alone[1][0, :64], gumbel[b])


def test_the_extreme_words_stay_inside_the_open_interval():
    uniform = to_uniform(torch.tensor([0, 2**32 - 1]))
    assert uniform.tolist() == [2.0**-24, 1 - 2.0**-24]
    assert to_gumbel(uniform).isfinite().all()


def test_noise_has_the_laws_it_claims():
    seeds, steps = torch.arange(400), torch.full((400,), 7)
    uniform, gumbel = step_noise(seeds, steps, 256)
    normal = action_noise(seeds, steps, 256)
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(gumbel.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3


def test_streams_steps_seeds_and_positions_are_uncorrelated():
    seeds = torch.arange(64)
    noise = torch.stack(
        [uniform_noise(seeds, torch.full((64,), step), 256, (0, 1, 2)) for step in range(3)]
    )  # [step, stream, seed, position]
    pairs = {
        "stream": (noise[:, 0], noise[:, 1]),
        "other stream": (noise[:, 1], noise[:, 2]),
        "step": (noise[0], noise[1]),
        "seed": (noise[:, :, :-1], noise[:, :, 1:]),
        "position": (noise[..., :-1], noise[..., 1:]),
    }
    for name, (a, b) in pairs.items():
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / math.sqrt(a.numel()), name
