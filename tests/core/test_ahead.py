"""The host never waits for the device within a step, and what it expects of a step comes true.

There is no GPU here. A turn runs on torch's device `meta`, whose tensors have no values: whatever
would ask one for a value, or for a size that depends on values, raises, as it would wait on a GPU.
Copies to the device for which the host waits are counted.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cogrpo_core.ahead import Ahead, course, look_ahead
from cogrpo_core.denoise import Samples, denoise, denoise_turn, masked_positions, start_samples
from cogrpo_core.jobs import Job
from cogrpo_core.models.schedule_policy import SchedulePolicy
from cogrpo_core.models.transformer import Conditioning, MeissonicTransformer
from cogrpo_core.schedule import Schedule, build_schedule, cosine_power, meissonic
from cogrpo_core.slots import Encoded, Lane

TABLES = [meissonic(6, 4.0), cosine_power(6, 2.0, 1.0), meissonic(4, 3.0)]


@pytest.mark.parametrize("learned", [False, True])
def test_the_course_is_what_happens(model_with_policy, learned):
    """Counts exactly where the schedule is given, and never more than expected where it is not."""
    transformer = model_with_policy.transformer
    dim = transformer.config.dim
    samples = start_samples([1, 2, 3], TABLES, 64, 39, learned=[learned] * 3)
    courses = [course(table, 64, learned=learned) for table in TABLES]
    generator = torch.Generator().manual_seed(0)
    texts = Conditioning(
        torch.randn(3, 5, dim, generator=generator), torch.randn(3, dim, generator=generator)
    )
    turns = denoise(
        transformer, samples, texts, texts, grid=(8, 8), policy=model_with_policy.schedule_policy
    )
    for step in range(6):
        found = masked_positions(samples, 39).sum(dim=1).tolist()
        active = [each for each in courses if step < each.num_steps]
        expected = [each.masked[step] for each in active]
        if learned:
            assert all(a <= b for a, b in zip(found, expected))
        else:
            assert found[: len(expected)] == expected
            assert [each.guided[step] for each in active][:2] == [True, False]
        samples = next(turns).samples


def test_look_ahead_sums_what_each_sample_does_next():
    courses = [course(table, 64) for table in TABLES]
    assert look_ahead(courses, [0, 0, 3]) == Ahead((0, 2), 128 + courses[2].masked[3], False)
    constant = build_schedule({"guidance_scale": [1.0, 2.0]}, 2).actions_T4
    assert [look_ahead([course(constant, 64)], [t]).guided for t in range(2)] == [(), (0,)]


class Waits(TorchDispatchMode):
    """Counts copies between host and device for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._constants = _Constants(self)

    def __enter__(self):
        self._constants.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._constants.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            waits = not kwargs.get("non_blocking", False) and not (len(args) > 2 and args[2])
            self.count += source.device.type != out.device.type and waits
        return out


class _Constants(TorchFunctionMode):
    """Counts `torch.tensor(..., device=...)`, which copies and waits as well."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            self._waits.count += torch.device(kwargs["device"]).type != "cpu"
        return func(*args, **kwargs)


@pytest.fixture
def twins(model_with_policy, monkeypatch):
    """The tiny model and its scheduling policy on `meta`, where the definitions run."""
    monkeypatch.setenv("COGRPO_KERNELS", "reference")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has no `meta`
    with torch.device("meta"):
        transformer = MeissonicTransformer(model_with_policy.transformer.config)
        policy = SchedulePolicy(model_with_policy.schedule_policy.config)
    return transformer.to("meta"), policy.to("meta")


def conditions(transformer, count: int) -> Conditioning:
    dim = transformer.config.dim
    return Conditioning(
        torch.zeros(count, 5, dim, device="meta"), torch.zeros(count, dim, device="meta")
    )


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_turn_waits_for_nothing(twins, learned, guidance):
    transformer, policy = twins
    tables = [meissonic(6, guidance), meissonic(5, 2.0), meissonic(6, guidance)]
    learns = [learned, False, learned]
    samples = start_samples([1, 2, 3], tables, 64, 39, learned=learns, device="meta")
    courses = [course(table, 64, learned=each) for table, each in zip(tables, learns, strict=True)]
    texts = conditions(transformer, 3)
    with Waits() as waits:
        for step in range(4):
            ahead = look_ahead(courses, [step] * 3, ["a", "a", "a"])
            assert ahead.alike == ((0, 1, 0) if step == 0 else ())
            turn = denoise_turn(
                transformer, samples, texts, texts, ahead, grid=(8, 8), policy=policy
            )
            samples = turn.samples
    assert samples.tokens_BN.device.type == "meta"
    assert waits.count == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda samples: bool(samples.learned_B.any()),
        lambda samples: samples.step_B.tolist(),
        lambda samples: samples.tokens_BN.nonzero(),
        lambda samples: samples.tokens_BN[samples.tokens_BN == 0],
        lambda samples: samples.tokens_BN.cpu(),
    ],
)
def test_what_would_wait_is_seen(twins, ask):
    samples: Samples = start_samples([1], [TABLES[0]], 64, 39, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        ask(samples)


def test_copies_that_wait_are_counted(twins):
    with Waits() as waits:
        torch.zeros(3).to("meta", non_blocking=True)
        assert waits.count == 0
        torch.zeros(3).to("meta")
        torch.tensor([1, 2], device="meta")
    assert waits.count == 2


def test_a_lanes_turns_wait_for_nothing(twins):
    """The engine's table: images join at different times, go on together, and are done."""
    transformer, policy = twins
    pipeline: Any = SimpleNamespace(
        device=torch.device("meta"),
        checkpoint=SimpleNamespace(transformer=transformer, schedule_policy=policy),
    )
    lane = Lane(pipeline, (8, 8), 3)
    texts = conditions(transformer, 1)

    def join(steps: int, **flags: bool) -> int:
        schedule = Schedule("meissonic", meissonic(steps, 4.0))
        job = Job("a star", "", 1, 16, 16, schedule, **flags)
        return lane.join(Encoded(job, texts, texts), 0)

    first, second = join(3), join(2, learned=True, explore=True)
    with Waits() as waits:
        assert lane.turn(lane.rows) == []
        assert lane.turn(lane.rows) == [second]
        lane.leave(second)
        assert lane.turn(lane.rows) == [first]
    assert waits.count == 0
