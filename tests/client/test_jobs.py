"""Jobs, lists and administration, for both clients: what is sent, what is read, what is waited."""

from collections.abc import Callable
from typing import Any

import pytest

import cogrpo_client
from tests.client.conftest import Driver
from tests.client.faulty import FaultyServer, answer, reset, silent
from tests.client.samples import GENERATION, problem, record

EVALUATION = {"status": "completed", "against": "p1", "suite": "s", "effect": 0.1, "passed": True}
POLICY = {
    "version": "p2", "status": "passed", "created": 1, "kind": "full", "sha256": "0", "bytes": 1,
}  # fmt: skip
CANARY = {"challenger": "p2", "share": 0.5}
CYCLE = {"id": "cyc_1", "status": "queued", "created": 1, "parent": "p1"}
PROMOTION = {
    "version": "p2", "previous": "p1", "created": 1, "forced": False, "reason": "", "caller": "k",
}  # fmt: skip
ERASED = {"generations": 1, "trajectories": 2}
DRAIN = {"draining": True, "in_flight": 3}


@pytest.fixture(autouse=True)
def _ask_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogrpo_client.waiting.FIRST_POLL_SECONDS", 0.01)
    monkeypatch.setattr("cogrpo_client.waiting.SHORTEST_TRY_SECONDS", 10.0)


def test_a_job_is_submitted_and_waited_for(driver: Driver, server: FaultyServer) -> None:
    server.script(
        reset,
        answer(202, record("queued"), Location="/v1/generations/gen_1"),
        answer(200, record("running", step=1, steps=4)),
        answer(500, problem(500)),
        answer(200, record("completed", result=GENERATION)),
    )
    generation = driver.call(lambda client: client.submit("a red circle"), lambda job: job.wait())
    assert generation.id == "gen_1"
    first, second, *later = server.requests
    assert first.headers["prefer"] == "respond-async"
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert {(request.method, request.target) for request in later} == {
        ("GET", "/v1/generations/gen_1")
    }


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        ("cancelled", problem(409, "cancelled"), cogrpo_client.ConflictError),
        ("failed", problem(504, "timeout"), cogrpo_client.InternalServerError),
        ("failed", None, cogrpo_client.APIError),
        ("completed", None, cogrpo_client.APIError),
    ],
)
def test_a_job_without_pictures_raises(
    driver: Driver, server: FaultyServer, status: str, error: Any, kind: type[Exception]
) -> None:
    server.script(answer(202, record("queued")), answer(200, record(status, error=error)))
    with pytest.raises(kind):
        driver.call(lambda client: client.submit("a red circle"), lambda job: job.wait())


@pytest.mark.parametrize(
    ("options", "timeout"), [({}, 0.05), ({"job_timeout": 0.05}, None)], ids=["given", "usual"]
)
def test_waiting_ends_at_its_limit(
    driver: Driver, server: FaultyServer, options: dict[str, Any], timeout: float | None
) -> None:
    server.script(answer(202, record("queued")))
    with pytest.raises(cogrpo_client.APITimeoutError, match=r"gen_1 took longer than 0\.05"):
        driver.call(
            lambda client: client.submit("a red circle"), lambda job: job.wait(timeout), **options
        )


def test_waiting_does_not_outlast_its_limit_when_the_service_is_silent(
    driver: Driver, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cogrpo_client.waiting.SHORTEST_TRY_SECONDS", 0.1)
    server.script(answer(202, record("queued")), silent)
    with pytest.raises(cogrpo_client.APITimeoutError, match="in time"):
        driver.call(lambda client: client.submit("a red circle"), lambda job: job.wait(0.1))
    assert len(server.requests) == 4


@pytest.mark.parametrize("end", ["cancel", "refresh"])
def test_a_job_is_cancelled_and_looked_at(driver: Driver, server: FaultyServer, end: str) -> None:
    server.script(answer(202, record("queued")), answer(200, record("cancelled")))
    found = driver.call(lambda client: client.submit("x"), lambda job: getattr(job, end)())
    assert found.status == "cancelled"


def test_a_list_asks_for_page_after_page(driver: Driver, server: FaultyServer) -> None:
    def page(next: str | None, *ids: str) -> dict[str, Any]:
        return {"data": [record("queued") | {"id": id} for id in ids], "next": next}

    server.script(
        answer(200, page("c/1", "a", "b")),
        reset,
        answer(200, page("c2")),
        answer(200, page(None, "c")),
    )
    found: list[Any] = []
    driver.take(lambda client: client.generations.list(limit=2), found)
    assert [entry.id for entry in found] == ["a", "b", "c"]
    assert [request.target.partition("?")[2] for request in server.requests] == [
        "limit=2", "limit=2&after=c%2F1", "limit=2&after=c%2F1", "limit=2&after=c2",
    ]  # fmt: skip


def test_a_list_asks_for_no_page_that_nobody_reads(driver: Driver, server: FaultyServer) -> None:
    server.script(answer(200, {"data": [CYCLE, CYCLE], "next": "c"}))
    found: list[Any] = []
    driver.take(lambda client: client.admin.cycles.list(), found, count=2)
    assert len(server.requests) == 1
    with pytest.raises(cogrpo_client.APIError, match="same page"):
        driver.take(lambda client: client.admin.cycles.list(), [])
    with pytest.raises(cogrpo_client.ConfigurationError, match="1 to 100"):
        driver.call(lambda client: client.generations.list(limit=101))


def test_a_cycle_is_triggered_and_waited_for(driver: Driver, server: FaultyServer) -> None:
    done = CYCLE | {"status": "completed", "policy_version": "p2", "evaluation": EVALUATION}
    server.script(answer(202, CYCLE), answer(200, CYCLE), answer(200, done))
    cycle = driver.call(
        lambda client: client.admin.cycles.trigger(model_iterations=3), lambda run: run.wait()
    )
    assert cycle.policy_version == "p2" and cycle.evaluation.passed
    assert server.requests[0].json == {"model_iterations": 3}
    assert server.requests[-1].target == "/admin/training/cycles/cyc_1"
    server.script(answer(202, CYCLE), answer(200, CYCLE | {"status": "cancelled"}))
    with pytest.raises(cogrpo_client.APIError, match="cyc_1: cancelled"):
        driver.call(lambda client: client.admin.cycles.trigger(), lambda run: run.wait())
    server.script(answer(202, CYCLE), answer(200, CYCLE | {"status": "cancelled"}))
    ended = driver.call(lambda client: client.admin.cycles.trigger(), lambda run: run.cancel())
    assert ended.status == "cancelled"


def test_a_policy_is_evaluated_and_waited_for(driver: Driver, server: FaultyServer) -> None:
    running = POLICY | {"evaluation": EVALUATION | {"status": "running"}}
    server.script(
        answer(202, running), answer(200, running), answer(200, POLICY | {"evaluation": EVALUATION})
    )
    evaluation = driver.call(
        lambda client: client.admin.policies.evaluate("p2", prompts=8), lambda run: run.wait()
    )
    assert evaluation.passed and evaluation.effect == 0.1
    assert server.requests[0].target == "/admin/policies/p2/evaluate"
    assert server.requests[-1].target == "/admin/policies/p2"
    server.script(answer(202, running), answer(200, POLICY))
    with pytest.raises(cogrpo_client.APIError, match="there is none"):
        driver.call(lambda client: client.admin.policies.evaluate("p2"), lambda run: run.wait())
    error = problem(409, "damaged")
    failed = POLICY | {"evaluation": EVALUATION | {"status": "failed", "error": error}}
    server.script(answer(202, running), answer(200, failed))
    with pytest.raises(cogrpo_client.ConflictError, match="What to do"):
        driver.call(lambda client: client.admin.policies.evaluate("p2"), lambda run: run.wait())
    server.script(answer(202, running), answer(200, running))
    driver.call(lambda client: client.admin.policies.evaluate("p2"), lambda run: run.cancel())
    assert server.requests[-1].target == "/admin/policies/p2/evaluate/cancel"


@pytest.mark.parametrize(
    ("do", "body", "sent"),
    [
        (lambda c: c.generations.get("g/1"), record("queued"), "GET /v1/generations/g%2F1"),
        (lambda c: c.generations.cancel("g"), record("queued"), "POST /v1/generations/g/cancel"),
        (lambda c: c.generations.delete("g"), ERASED, "DELETE /v1/generations/g"),
        (lambda c: c.generations.delete_user("a@b"), ERASED, "DELETE /v1/generations?user=a%40b"),
        (
            lambda c: c.generations.replay("g"),
            {"generation_id": "g", "request_id": "r", "identical": True, "policy_version": "p"}
            | {"images": []},
            "POST /v1/generations/g/replay",
        ),
        (
            lambda c: c.generations.feedback("g", 0.5, image=0),
            {"generation_id": "g", "request_id": "r", "score": 0.5, "image": 0},
            'POST /v1/generations/g/feedback {"score":0.5,"image":0}',
        ),
        (lambda c: c.admin.cycles.get("c"), CYCLE, "GET /admin/training/cycles/c"),
        (lambda c: c.admin.cycles.cancel("c"), CYCLE, "POST /admin/training/cycles/c/cancel"),
        (lambda c: c.admin.policies.get("p"), POLICY, "GET /admin/policies/p"),
        (
            lambda c: c.admin.policies.cancel_evaluation("p"),
            POLICY,
            "POST /admin/policies/p/evaluate/cancel",
        ),
        (
            lambda c: c.admin.policies.promote("p", force=True, reason="r"),
            PROMOTION,
            'POST /admin/policies/p/promote {"force":true,"reason":"r"}',
        ),
        (
            lambda c: c.admin.policies.rollback(),
            PROMOTION,
            'POST /admin/policies/rollback {"reason":""}',
        ),
        (
            lambda c: c.admin.policies.rollback(reason="r", expected="p2"),
            PROMOTION,
            'POST /admin/policies/rollback {"reason":"r","expected":"p2"}',
        ),
        (lambda c: c.admin.policies.canary(), CANARY, "GET /admin/policies/canary"),
        (
            lambda c: c.admin.policies.set_canary(0.5),
            CANARY,
            'POST /admin/policies/canary {"share":0.5,"reason":""}',
        ),
        (lambda c: c.admin.drain(), DRAIN, 'POST /admin/drain {"draining":true}'),
        (lambda c: c.admin.drain_state(), DRAIN, "GET /admin/drain"),
        (lambda c: c.models(), {"data": []}, "GET /v1/models"),
    ],
)
def test_each_method_sends_what_the_contract_says(
    driver: Driver, server: FaultyServer, do: Callable[[Any], Any], body: Any, sent: str
) -> None:
    server.script(answer(503, problem(503), Retry_After="0"), answer(200, body))
    result = driver.call(do).model_dump()
    assert {name: result[name] for name in body} == body
    first, second = server.requests
    assert first == second
    method, target, *content = sent.split(" ", 2)
    assert (first.method, first.target, [first.body.decode()]) == (method, target, content or [""])
    assert ("idempotency-key" in first.headers) == (method == "POST")


@pytest.mark.parametrize("id", ["", ".", ".."])
def test_an_id_stays_one_part_of_the_path(driver: Driver, id: str) -> None:
    with pytest.raises(cogrpo_client.ConfigurationError, match="is no id"):
        driver.call(lambda client: client.generations.delete(id))
    with pytest.raises(cogrpo_client.ConfigurationError, match="name the user"):
        driver.call(lambda client: client.generations.delete_user(""))


def test_replaying_may_take_as_long_as_a_job(driver: Driver, server: FaultyServer) -> None:
    server.script(silent)
    with pytest.raises(cogrpo_client.APITimeoutError):
        driver.call(lambda client: client.generations.replay("g"), job_timeout=0.1, max_retries=0)
