"""/admin/training/cycles: asks for training cycles and tells how far they are.

The trainer is a process of its own; what both know lies in the data folder
(cogrpo_core/exchange/training_cycles.py), so these routes answer while it starts again.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from cogrpo_client.types import Cycle, CycleRequest, Evaluation, Page
from cogrpo_client.types.page import DEFAULT_PAGE, MAX_PAGE
from cogrpo_core.exchange.training_cycles import CycleBusyError, CycleRecord, Cycles
from cogrpo_server.body import read_body
from cogrpo_server.negotiation import JSON
from cogrpo_server.openapi import body_of
from cogrpo_server.problems import ApiError, invalid
from cogrpo_server.rendering import event_stream
from cogrpo_server.training import (
    check_trainer,
    digest,
    in_thread,
    key_digest,
    no_trainer,
    run_problem,
)

PATH = "/admin/training/cycles"
_ONE = PATH + "/{cycle_id}"
_POLL_SECONDS = 0.5


def training_routes(cycles: Cycles | None, *, has_trainer: bool = False) -> APIRouter:
    """The routes before the cycles of a data folder; `has_trainer` is whether one should run."""
    router = APIRouter()

    @router.post(
        PATH,
        response_model=Cycle,
        status_code=202,
        openapi_extra=body_of("CycleRequest"),
    )
    async def begin(request: Request) -> Response:
        """Begins a cycle, unless another has not ended."""
        wanted, body = await read_body(request, CycleRequest)
        if wanted.model_iterations == 0 and wanted.schedule_iterations == 0:
            raise invalid("/schedule_iterations", "with 0 and 0 iterations nothing is trained")
        key = key_digest(request)
        found = _there(cycles)
        await in_thread(lambda: check_trainer(found, has_trainer))
        try:
            record = await in_thread(
                lambda: found.request(
                    "request",
                    model_iterations=wanted.model_iterations,
                    schedule_iterations=wanted.schedule_iterations,
                    reason=wanted.reason,
                    key=key,
                    body=digest(body),
                )
            )
        except CycleBusyError as error:
            raise ApiError(
                409,
                "cycle_under_way",
                f"{error.running} has not ended; wait for it or cancel it.",
                headers={"Location": f"{PATH}/{error.running}"},
            ) from None
        headers = {"Location": f"{PATH}/{record.id}"}
        return Response(_wire(record).model_dump_json(), 202, headers=headers, media_type=JSON)

    @router.get(PATH, response_model=Page[Cycle])
    async def listing(
        limit: int = Query(DEFAULT_PAGE, ge=1, le=MAX_PAGE),
        after: str | None = Query(None, max_length=200),
    ) -> Page[Cycle]:
        """The cycles, newest first."""
        records = [] if cycles is None else await in_thread(cycles.records)
        if after is not None:
            last = _cursor(after)
            records = [record for record in records if record.id < last]
        page = records[:limit]
        more = len(records) > limit
        return Page(data=[_wire(one) for one in page], next=_as_cursor(page[-1]) if more else None)

    @router.get(_ONE, response_model=Cycle)
    async def one(cycle_id: str) -> Cycle:
        """One cycle."""
        return _wire(await _record(cycle_id))

    @router.get(_ONE + "/events", response_class=Response)
    async def events(cycle_id: str) -> Response:
        """The cycle as it is, and again each time that it changed, to its end."""
        await _record(cycle_id)
        return event_stream(_changes(lambda: _record(cycle_id)), None)

    @router.post(_ONE + "/cancel", response_model=Cycle)
    async def cancel(cycle_id: str) -> Cycle:
        """Ends a cycle at its next iteration; one that has ended stays as it is."""
        record = await _record(cycle_id)
        if not record.ended:
            await in_thread(lambda: _there(cycles).cancel(cycle_id))
        return _wire(await _record(cycle_id))

    async def _record(cycle_id: str) -> CycleRecord:
        record = None if cycles is None else await in_thread(lambda: cycles.get(cycle_id))
        if record is None:
            raise ApiError(404, "not_found", "There is no such cycle.")
        return record

    return router


async def _changes(look: Callable[[], Any]) -> AsyncIterator[bytes]:
    """Events `cycle`, numbered from 1; the last one has an end in it."""
    number, before = 0, None
    while True:
        record: CycleRecord = await look()
        if record != before:
            number, before = number + 1, record
            data = _wire(record).model_dump_json()
            yield f"id: {number}\nevent: cycle\ndata: {data}\n\n".encode()
        if record.ended:
            return
        await asyncio.sleep(_POLL_SECONDS)


def _there(cycles: Cycles | None) -> Cycles:
    if cycles is None:
        raise no_trainer()
    return cycles


def _wire(record: CycleRecord) -> Cycle:
    values = record.model_dump(include=set(Cycle.model_fields) - {"evaluation", "error"})
    evaluation = None
    if record.evaluation is not None:
        evaluation = Evaluation.model_validate(record.evaluation)
    error = run_problem(record.code, record.detail, record.id, "The cycle")
    return Cycle(**values, evaluation=evaluation, error=error)


def _as_cursor(record: CycleRecord) -> str:
    return base64.urlsafe_b64encode(record.id.encode()).decode()


def _cursor(text: str) -> str:
    try:
        found = base64.urlsafe_b64decode(text).decode("ascii")
    except (ValueError, binascii.Error):
        found = ""
    if not found.startswith("cycle-"):
        raise invalid("/after", "not a cursor of this service")
    return found
