"""The demo's users against a real service, and its report of a story that is told here."""

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest

from cogrpo_client import AsyncClient
from cogrpo_client.types import Cycle, Evaluation
from cogrpo_core.shapes.suites import Prompt, suite, truth_cases
from cogrpo_trainer.measure import CHECKER
from demo.report import write_report
from demo.results import REWARD, results_of
from demo.story import STEP_COUNTS, STEPS, Measured, Story
from demo.users import Crowd, Picture, ask_all
from tests.server.process import running


@pytest.mark.slow
async def test_users_come_at_random_moments_ask_lists_and_keep_failures(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with running(tiny_checkpoint, tmp_path / "data", "--single-process") as service:
        async with AsyncClient(service.url, service.keys[0], max_retries=0) as client:
            crowd, leave = Crowd(), asyncio.Event()
            prompts = itertools.cycle(["a red circle", "two blue stars"])
            coming = asyncio.create_task(
                crowd.come(client, prompts, leave, rate=20.0, steps=2, seed=0)
            )
            asked = await ask_all(client, ["a red circle"] * 3, steps=2, first_seed=5)
            while len(crowd.pictures) < 4:
                await asyncio.sleep(0.05)
            leave.set()
            await asyncio.wait_for(coming, 60)
            again = await ask_all(client, ["a red circle"] * 3, steps=2, first_seed=5)
            unlucky, leave = Crowd(), asyncio.Event()
            coming = asyncio.create_task(
                unlucky.come(client, itertools.repeat(" "), leave, rate=20.0, steps=2, seed=0)
            )
            while not unlucky.failures:
                await asyncio.sleep(0.05)
            leave.set()
            await asyncio.wait_for(coming, 60)
    assert crowd.failures == [] and {p.version for p in crowd.pictures} == {"base"}
    assert unlucky.pictures == [] and "prompt" in unlucky.failures[0]
    for one, other in zip(asked, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    assert not np.array_equal(asked[0].pixels, asked[1].pixels)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return suite("geneval-shapes", 1)


def told(prompts: list[Prompt]) -> Story:
    """A base that gives pictures of other prompts, and a version that gives the right ones."""

    def pictures(seed: int, version: str, *, right: bool, steps: int) -> list[Picture]:
        found: list[Picture] = []
        for prompt in prompts:
            spec_and_image = truth_cases(prompt.task, 1, seed)[0]
            image = spec_and_image[1] if right else np.full((64, 64, 3), 90, np.uint8)
            found.append(Picture(prompt.text, steps, version, image, 10.0 + len(found), 0.5))
        return found

    def measured(version: str, *, right: bool) -> Measured:
        return {n: pictures(n, version, right=right, steps=n) for n in STEP_COUNTS}

    evaluation = Evaluation(
        status="completed", against="base", suite="shapes", effect=0.2, interval=(0.1, 0.3)
    )
    cycle = Cycle(
        id="cycle-1",
        status="completed",
        created=0,
        finished=1,
        parent="base",
        policy_version="v1",
        promoted=True,
        evaluation=evaluation,
        iterations=3,
    )
    crowd = Crowd(
        pictures(90, "base", right=False, steps=STEPS) + pictures(91, "v1", right=True, steps=STEPS)
    )
    return Story(
        begin=0.0,
        prompts=[prompt.text for prompt in prompts],
        before=measured("base", right=False),
        after=measured("v1", right=True),
        crowd=crowd,
        alone=[(0.0, 12.0)],
        phases=[(12.0, "model"), (14.0, "schedule"), (20.0, "end")],
        cycle=cycle,
        promoted=21.0,
        ended=60.0,
    )


def test_the_report_says_what_the_pictures_are_worth(prompts: list[Prompt], tmp_path: Path) -> None:
    story = told(prompts)
    results = results_of(story, prompts)
    assert results.gains[REWARD].value > 0.1
    assert list(results.fewer) == list(itertools.pairwise(STEP_COUNTS))
    assert results.live_after.value > results.live_before.value
    assert results.live_before.n == results.live_after.n == len(prompts)
    assert np.all(results.before[STEPS][CHECKER] == 0)
    page = tmp_path / "page.md"
    write_report(story, results, page, "make demo")
    text = page.read_text()
    assert f"{results.gains[REWARD].value:+.3f}" in text and "0 failed requests" in text
    assert "| users alone | 4 |" in text  # those asked for within the span, of both halves
    pictures = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert pictures == ["page-pictures.png", "page-steps.png", "page-timeline.png"]
    assert all(f"images/{name}" in text for name in pictures)
