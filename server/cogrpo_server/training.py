"""The trainer seen from the routes: whether there is one, and what it keeps on disk.

The disk is asked in threads; what it refuses becomes an `ApiError`.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from fastapi import Request

from cogrpo_client.types import Problem
from cogrpo_core.exchange.training_cycles import Cycles
from cogrpo_core.exchange.training_records import ReusedKeyError, TrainingAwayError
from cogrpo_server.problems import ApiError, problem
from cogrpo_server.routes_generate import caller_of, idempotency_key_of

_STATUS = {
    "cancelled": 409,
    "damaged": 409,
    "diverged": 409,
    "invalid": 422,
    "no_traffic": 409,
    "unknown": 409,
    "unusable": 409,
}
"""Of the ends whose sentence the trainer writes for callers."""

Found = TypeVar("Found")


async def in_thread(work: Callable[[], Found]) -> Found:
    """The disk's answer. Raises `ApiError`."""
    with training_errors():
        return await asyncio.to_thread(work)


@contextlib.contextmanager
def training_errors() -> Iterator[None]:
    """What is refused of training becomes an `ApiError`."""
    try:
        yield
    except ReusedKeyError:
        raise ApiError(
            422, "idempotency_key_reused", "This Idempotency-Key came with another body before."
        ) from None
    except TrainingAwayError:
        detail = "What is kept of training cannot be reached now."
        raise ApiError(503, "store_away", detail, retry_after=5) from None


def check_trainer(cycles: Cycles, has_trainer: bool) -> None:
    """Raises `ApiError` unless a trainer is at work; `has_trainer` is whether one should be."""
    if cycles.is_attended():
        return
    if has_trainer:
        raise ApiError(503, "trainer_away", "The trainer is starting; try again.", retry_after=5)
    raise no_trainer()


def no_trainer() -> ApiError:
    """The error where no trainer is to come."""
    return ApiError(
        409,
        "no_trainer",
        "No trainer runs beside this service: start it on Ray, without --single-process and "
        "--no-trainer.",
    )


def run_problem(code: str | None, detail: str, run_id: str, what: str) -> Problem | None:
    """Why the trainer did not complete what it was asked for; None for no `code`."""
    if code is None:
        return None
    said = detail if code in _STATUS else f"{what} failed; trainer.log says why."
    return problem(ApiError(_STATUS.get(code, 500), code, said), run_id)


def key_digest(request: Request) -> str | None:
    """Caller and Idempotency-Key as they are kept, if there is one. Raises `ApiError`."""
    key = idempotency_key_of(request)
    return None if key is None else digest(f"{caller_of(request)}\n{key}".encode())


def digest(data: bytes) -> str:
    """What is kept of a body, to know it again."""
    return hashlib.sha256(data).hexdigest()
