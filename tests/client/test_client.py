"""The SDK against a transport that misbehaves: retries, errors, and one surface twice."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import cogrpo_client
from cogrpo_client import AsyncClient, Client, Generation, Problem
from cogrpo_client.retry import retry_delay

ATTRIBUTION = {
    "model": "m",
    "policy_version": "p",
    "schedule": "s",
    "steps_planned": 4,
    "steps_used": 4,
    "queue_ms": 0.5,
    "inference_ms": 2.0,
}
GENERATION = {
    "id": "gen_1",
    "request_id": "req_1",
    "created": 1,
    "stored": True,
    "images": [{"b64_png": "", "seed": 1, "trajectory_id": "gen_1-0"}],
    "attribution": ATTRIBUTION,
}

Handler = Callable[[httpx.Request], httpx.Response]


def problem(status: int, code: str = "code", **more: Any) -> httpx.Response:
    body = Problem(
        title="Title",
        status=status,
        detail="What to do.",
        code=code,
        request_id="req_body",
        retryable=False,
        **more,
    )
    headers = {"x-request-id": "req_header"}
    return httpx.Response(status, content=body.model_dump_json(), headers=headers)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the SDK would have slept between tries."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("asyncio.sleep", sleep)
    monkeypatch.delenv("COGRPO_API_KEY", raising=False)
    return slept


class Script:
    """Answers request after request from a list; the last answer repeats."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def call_sync(script: Script, **options: Any) -> Generation:
    with Client(
        "http://service", "key", transport=httpx.MockTransport(script), **options
    ) as client:
        return client.generate("a red circle", seed=7)


def call_async(script: Script, **options: Any) -> Generation:
    async def call() -> Generation:
        transport = httpx.MockTransport(script)
        async with AsyncClient("http://service", "key", transport=transport, **options) as client:
            return await client.generate("a red circle", seed=7)

    return asyncio.run(call())


BOTH = pytest.mark.parametrize("call", [call_sync, call_async])
OK = httpx.Response(200, json=GENERATION)


@BOTH
def test_a_generation_is_asked_for_and_read(call: Callable[..., Generation]) -> None:
    script = Script(OK)
    generation = call(script)
    assert generation == Generation.model_validate(GENERATION)
    (request,) = script.requests
    assert (request.method, request.url.path) == ("POST", "/generate")
    assert request.headers["authorization"] == "Bearer key"
    assert request.headers["idempotency-key"]
    assert request.content == b'{"prompt":"a red circle","seed":7}'


@BOTH
@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("half an answer"),
        httpx.ReadTimeout("slow"),
        httpx.Response(408),
        httpx.Response(429),
        httpx.Response(500),
        httpx.Response(503),
        httpx.Response(409, headers={"x-should-retry": "true"}),
    ],
)
def test_what_may_pass_is_tried_again_under_the_same_key(
    call: Callable[..., Generation], failure: httpx.Response | Exception, waits: list[float]
) -> None:
    script = Script(failure, failure, OK)
    assert call(script).id == "gen_1"
    assert len(script.requests) == 3
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert len(waits) == 2
    assert all(0.5 <= seconds <= 8.0 for seconds in waits)


@BOTH
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (403, "PermissionDeniedError"),
        (404, "NotFoundError"),
        (406, "BadRequestError"),
        (409, "ConflictError"),
        (413, "BadRequestError"),
        (415, "BadRequestError"),
        (422, "UnprocessableEntityError"),
        (418, "APIStatusError"),
    ],
)
def test_what_stays_wrong_is_raised_at_once(
    call: Callable[..., Generation], status: int, error: str, waits: list[float]
) -> None:
    faults = [{"pointer": "/n", "message": "too many"}]
    script = Script(problem(status, "some_code", errors=faults))
    with pytest.raises(getattr(cogrpo_client, error)) as caught:
        call(script)
    assert len(script.requests) == 1
    assert waits == []
    raised = caught.value
    assert (raised.status_code, raised.code) == (status, "some_code")
    assert raised.request_id == "req_header"
    assert raised.errors[0].pointer == "/n"
    for part in ("What to do.", "/n: too many", "req_header", str(status)):
        assert part in str(raised)


@BOTH
def test_tries_end_with_the_last_error(call: Callable[..., Generation], waits: list[float]) -> None:
    with pytest.raises(cogrpo_client.RateLimitError):
        call(Script(problem(429)))
    with pytest.raises(cogrpo_client.InternalServerError):
        call(Script(httpx.Response(502, text="<html>not a problem</html>")))
    with pytest.raises(cogrpo_client.APITimeoutError, match="in time"):
        call(Script(httpx.ReadTimeout("slow")))
    with pytest.raises(cogrpo_client.APIConnectionError, match="running"):
        call(Script(httpx.ConnectError("refused")))
    assert len(waits) == 4 * 2
    script = Script(problem(503))
    with pytest.raises(cogrpo_client.InternalServerError):
        call(script, max_retries=0)
    assert len(script.requests) == 1


@BOTH
def test_an_answer_of_another_kind_is_an_api_error(call: Callable[..., Generation]) -> None:
    with pytest.raises(cogrpo_client.APIError, match="cannot read"):
        call(Script(httpx.Response(200, text="hello")))


def test_retry_after_is_honoured_within_reason() -> None:
    def after(value: str) -> httpx.Response:
        return httpx.Response(429, headers={"retry-after": value})

    assert retry_delay(0, after("3")) == 3.0
    assert retry_delay(0, after("0")) == 0.0
    for odd in ("-1", "1e9", "nan", "soon", "121"):
        assert 0.5 <= retry_delay(0, after(odd)) <= 8.0
    delays = [retry_delay(attempt, None) for attempt in range(8)]
    assert all(0.5 <= delay <= 8.0 for delay in delays)
    assert delays[0] < delays[3] < delays[5]


def test_readiness_reads_the_same_with_503(waits: list[float]) -> None:
    script = Script(httpx.Response(503, json={"status": "loading", "degraded": []}))
    with Client("http://service", transport=httpx.MockTransport(script)) as client:
        assert client.ready().status == "loading"
    assert len(script.requests) == 1


def test_both_clients_have_one_surface() -> None:
    def surface(kind: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(member))
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert surface(Client) == surface(AsyncClient)


def test_settings_that_make_no_sense_are_refused() -> None:
    for url in ("service:8000", "ftp://service", "http://"):
        with pytest.raises(ValueError, match="not an http"):
            Client(url)
    with pytest.raises(ValueError, match="max_retries"):
        Client(max_retries=-1)
