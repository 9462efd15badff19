"""What happens in the demo, in order: measure the base, train under load, measure what serves."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cogrpo_client import AsyncClient
from cogrpo_client.types import Cycle
from cogrpo_server.bench.service import Service, running_service
from cogrpo_trainer.train.prompts import SHAPES, Prompts
from demo.users import Crowd, Picture, ask_all

MODEL = "shapes"
STEPS = 4
"""Of the users' pictures, and of the training."""
STEP_COUNTS = (2, 3, 4, 6, 8)
"""At which both are measured."""
RATE = 0.5
"""Users a second."""
MEASURE_SEED = 700_000
GATE_PROMPTS = 105
"""What the gate judges by, as loop.toml says; others are measured."""
ALONE_SECONDS = 40.0
"""Before the cycle, and after the swap, in which the crowd is all that the service has to do."""
CYCLE_SECONDS = 3600.0
POLL_SECONDS = 1.0
LOOP = Path(__file__).with_name("loop.toml")

Measured = dict[int, list[Picture]]
"""Pictures of the held-out prompts, by number of steps."""


@dataclass
class Story:
    """What happened. Moments are of the monotonic clock."""

    begin: float
    prompts: list[str]
    """Held out: nothing was trained on them."""
    before: Measured = field(default_factory=dict)
    after: Measured = field(default_factory=dict)
    crowd: Crowd = field(default_factory=Crowd)
    alone: list[tuple[float, float]] = field(default_factory=list)
    """From when to when the crowd was all there was."""
    phases: list[tuple[float, str]] = field(default_factory=list)
    """When each phase of the cycle began."""
    cycle: Cycle | None = None
    promoted: float | None = None
    """When every replica served the new version."""
    ended: float = 0.0


class DemoError(RuntimeError):
    """What kept the demo from going on, in one line."""


def play(data_dir: Path, prompts: Sequence[str], say: Callable[[str], None]) -> Story:
    """Starts the service in `data_dir`, tells the story on it, and stops it.

    Raises `DemoError`, `BenchError` where the service does not start, and `APIError`.
    """
    options = ("--trainer-config", str(LOOP), "--replicas", "1")
    say("starting Redis, Ray Serve, one engine and the trainer")
    with running_service(MODEL, 1, data_dir=data_dir, options=options) as service:
        story = Story(time.monotonic(), list(prompts))
        asyncio.run(_tell(story, service, say))
    return story


async def _tell(story: Story, service: Service, say: Callable[[str], None]) -> None:
    leave = asyncio.Event()
    async with (
        # Users do not retry: a request that the service drops must be seen.
        AsyncClient(service.url, service.key, max_retries=0) as users,
        AsyncClient(service.url, service.admin_key) as admin,
    ):
        visits = story.crowd.come(users, _prompts(), leave, rate=RATE, steps=STEPS, seed=1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(visits)
            try:
                await _leave_alone(story)
                say("measuring the base model through the service")
                story.before = await _measure(admin, story.prompts)
                await _train(story, admin, say)
                if story.cycle is not None and story.cycle.promoted:
                    await _served_by(story, admin)
                    await _leave_alone(story)
                    say("measuring what serves now")
                    story.after = await _measure(admin, story.prompts)
            finally:
                leave.set()
        story.ended = time.monotonic()


async def _leave_alone(story: Story) -> None:
    begin = time.monotonic()
    await asyncio.sleep(ALONE_SECONDS)
    story.alone.append((begin, time.monotonic()))


async def _measure(client: AsyncClient, prompts: Sequence[str]) -> Measured:
    return {
        steps: await ask_all(client, prompts, steps=steps, first_seed=MEASURE_SEED)
        for steps in STEP_COUNTS
    }


async def _train(story: Story, client: AsyncClient, say: Callable[[str], None]) -> None:
    run = await client.admin.cycles.trigger(reason="make demo")
    cycle_id, phase = run.id, ""
    deadline = time.monotonic() + CYCLE_SECONDS
    while True:
        cycle = story.cycle = await client.admin.cycles.get(cycle_id)
        if cycle.finished is not None:
            break
        if time.monotonic() > deadline:
            raise DemoError(f"{cycle_id} has not ended after {CYCLE_SECONDS:g} s")
        if cycle.phase is not None and cycle.phase != phase:
            phase = cycle.phase
            story.phases.append((time.monotonic(), phase))
            say(f"{cycle_id}: {phase}")
        await asyncio.sleep(POLL_SECONDS)
    story.phases.append((time.monotonic(), "end"))
    if cycle.error is not None:
        raise DemoError(f"{cycle_id} ended with: {cycle.error.detail}")
    say(f"{cycle_id}: {cycle.policy_version} {'promoted' if cycle.promoted else 'rejected'}")


async def _served_by(story: Story, client: AsyncClient) -> None:
    """Waits until every replica serves what was promoted."""
    assert story.cycle is not None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        replicas = [replica async for replica in client.admin.replicas()]
        if replicas and all(r.policy_version == story.cycle.policy_version for r in replicas):
            story.promoted = time.monotonic()
            return
        await asyncio.sleep(0.2)
    raise DemoError(f"not every replica serves {story.cycle.policy_version} after a minute")


def _prompts() -> Iterator[str]:
    """What users ask for: never a composition that is held out."""
    for number in itertools.count():
        yield from Prompts(SHAPES).draw(64, seed=0, iteration=1_000_000 + number)
