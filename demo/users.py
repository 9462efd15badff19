"""Simulated users: a crowd that comes at random moments, and one who asks a list of questions."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cogrpo_client import APIError, AsyncClient
from cogrpo_server.bench.load import arrivals

AT_ONCE = 8
"""Questions of a list that are under way: the engine's slots."""
USERS = 25
DAY = 86_400.0


@dataclass(frozen=True)
class Picture:
    """One answer of the service."""

    prompt: str
    steps: int
    version: str
    """Of the policy that made it."""
    pixels: NDArray[np.uint8]
    """[H, W, 3]"""
    moment: float
    """When it was asked for, in seconds of the monotonic clock."""
    seconds: float
    """Until it was there."""


@dataclass
class Crowd:
    """What users who come at random moments got."""

    pictures: list[Picture] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def come(
        self,
        client: AsyncClient,
        prompts: Iterator[str],
        leave: asyncio.Event,
        *,
        rate: float,
        steps: int,
        seed: int,
    ) -> None:
        """`rate` users a second, each with a prompt, until `leave`; then waits for the last."""

        async def visit(number: int, prompt: str) -> None:
            try:
                user = f"user-{number % USERS}"
                self.pictures.append(await ask(client, prompt, steps=steps, user=user))
            except APIError as error:
                self.failures.append(f"{type(error).__name__}: {error}")

        begin = time.monotonic()
        async with asyncio.TaskGroup() as visits:
            for number, moment in enumerate(arrivals(rate, DAY, seed)):
                try:
                    await asyncio.wait_for(leave.wait(), begin + moment - time.monotonic())
                    return
                except TimeoutError:
                    visits.create_task(visit(number, next(prompts)))


async def ask(
    client: AsyncClient,
    prompt: str,
    *,
    steps: int,
    seed: int | None = None,
    store: bool = True,
    user: str | None = None,
) -> Picture:
    """One picture. Raises `APIError`."""
    moment = time.monotonic()
    made = await client.generate(
        prompt, num_inference_steps=steps, seed=seed, store=store, user=user
    )
    return Picture(
        prompt,
        steps,
        made.attribution.policy_version,
        np.asarray(made.images[0].image),
        moment,
        time.monotonic() - moment,
    )


async def ask_all(
    client: AsyncClient, prompts: Sequence[str], *, steps: int, first_seed: int
) -> list[Picture]:
    """A picture of each prompt, prompt i with the seed `first_seed` + i, kept out of the log."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, prompt: str) -> Picture:
        async with gate:
            return await ask(client, prompt, steps=steps, seed=first_seed + number, store=False)

    return list(await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts))))
