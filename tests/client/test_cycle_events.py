"""The events of a training cycle, for both clients: every change once, to whatever end."""

from collections.abc import Callable
from typing import Any

import pytest

import cogrpo_client
from tests.client.conftest import Driver
from tests.client.faulty import FaultyServer, answer, stream
from tests.client.samples import cycle, cycle_wire, problem

QUEUED = cycle("queued")
TRAINING = cycle("running", phase="model", iteration=1, iterations=2)
JUDGING = cycle("running", phase="evaluation", iteration=2, iterations=2)
DONE = cycle("completed", iteration=2, iterations=2, policy_version="p2", promoted=True)
FAILED = cycle("failed", error=problem(409, "diverged"))


def follow(client: Any) -> Any:
    return client.admin.cycles.events("cyc_1")


def shown(cycles: list[Any]) -> list[tuple[str, int]]:
    return [(one.status, one.iteration) for one in cycles]


def test_every_change_to_the_end(driver: Driver, server: FaultyServer) -> None:
    unknown = b"id: 2\nevent: weather\ndata: {}\n\n"
    begun = cycle_wire([QUEUED, TRAINING])
    server.script(stream([*begun, unknown, *cycle_wire([DONE])[1:], *cycle_wire([QUEUED])]))
    found: list[Any] = []
    driver.take(follow, found)
    assert shown(found) == [("queued", 0), ("running", 1), ("completed", 2)]
    assert found[-1].ended and found[-1].promoted
    (request,) = server.requests
    assert (request.method, request.target) == ("GET", "/admin/training/cycles/cyc_1/events")
    assert request.headers["accept"] == "text/event-stream"


def test_a_failed_cycle_is_the_last_record_and_no_error(
    driver: Driver, server: FaultyServer
) -> None:
    server.script(stream(cycle_wire([TRAINING, FAILED])))
    found: list[Any] = []
    driver.take(follow, found)
    assert [one.status for one in found] == ["running", "failed"]
    assert found[-1].error.code == "diverged"


@pytest.mark.parametrize("end", ["whole", "cut", "reset"])
def test_after_a_break_it_goes_on_with_what_changed(
    driver: Driver, server: FaultyServer, end: str
) -> None:
    """The numbers begin anew at each connection, so they say nothing of what was missed."""
    server.script(
        stream(cycle_wire([QUEUED, TRAINING]), end=end),
        answer(503, problem(503)),
        stream(cycle_wire([TRAINING]), end=end),
        stream(cycle_wire([JUDGING, DONE])),
    )
    found: list[Any] = []
    driver.take(follow, found, max_retries=3)
    assert shown(found) == [("queued", 0), ("running", 1), ("running", 2), ("completed", 2)]
    assert len(server.requests) == 4
    assert all("last-event-id" not in request.headers for request in server.requests)


def test_breaks_without_news_come_to_an_end(driver: Driver, server: FaultyServer) -> None:
    server.script(stream(cycle_wire([QUEUED])))
    with pytest.raises(cogrpo_client.APIConnectionError, match="cut off"):
        driver.take(follow, [], max_retries=2)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, DONE),
        stream([b'event: cycle\ndata: {"id": 1}\n\n']),
        stream([b"event: cycle\ndata: [\n\n"]),
    ],
)
def test_what_is_no_cycle_is_said(driver: Driver, server: FaultyServer, reply: Any) -> None:
    server.script(reply)
    with pytest.raises(cogrpo_client.APIError, match="cannot read"):
        driver.take(follow, [])


def test_what_was_triggered_has_events_too(driver: Driver, server: FaultyServer) -> None:
    server.script(answer(202, QUEUED), stream(cycle_wire([QUEUED, DONE])))
    events: list[Callable[[], Any]] = []

    def first(run: Any) -> Any:
        iterator = run.events()
        events.append(iterator.close)
        return iterator.__anext__() if hasattr(iterator, "__anext__") else next(iterator)

    found = driver.call(lambda client: client.admin.cycles.trigger(), first)
    assert found.status == "queued"
    assert server.requests[-1].target == "/admin/training/cycles/cyc_1/events"
