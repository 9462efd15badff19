"""`Client` and `AsyncClient`: one surface over the HTTP API, with retries and typed errors."""

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, Unpack

import httpx
from pydantic import BaseModel, ValidationError

from cogrpo_client.errors import APIConnectionError, APIError, APITimeoutError, status_error
from cogrpo_client.keys import find_api_key, is_loopback
from cogrpo_client.options import GenerateOptions
from cogrpo_client.retry import is_retried, retry_delay
from cogrpo_client.types import Generation, Info, Problem, Readiness

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT_SECONDS = 5.0
TIMEOUT_SECONDS = 300.0
MAX_RETRIES = 2

Wire = TypeVar("Wire", bound=BaseModel)


@dataclass(frozen=True)
class _Call:
    """One HTTP request of the API, the same for every try."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    retried: bool = True

    def arguments(self) -> dict[str, Any]:
        return {"method": self.method, "url": self.path, "json": self.body, "headers": self.headers}


_INFO = _Call("GET", "/v1/info")
_READY = _Call("GET", "/readyz", retried=False)


def _generate(prompt: str, options: GenerateOptions) -> _Call:
    body: dict[str, Any] = {"prompt": prompt}
    for name, value in options.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_none=True)
        if value is not None:
            body[name] = value
    # The key makes a retry safe: the service answers it with the pictures of the first try.
    return _Call("POST", "/generate", body, {"Idempotency-Key": uuid.uuid4().hex})


class _Connection:
    """What both clients share: where requests go, what they carry, when to try again."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        max_retries: int,
        connect_timeout: float,
        timeout: float,
    ) -> None:
        url = httpx.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"base_url {base_url!r} is not an http or https URL")
        if max_retries < 0:
            raise ValueError("max_retries is the number of further tries; it cannot be negative")
        self.url = url
        self.max_retries = max_retries
        key = api_key or find_api_key(url)
        self.options: dict[str, Any] = {
            "base_url": url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(timeout, connect=connect_timeout),
            "trust_env": not is_loopback(
                url
            ),  # a proxy of the environment does not serve this machine
        }

    def wait(
        self, call: _Call, attempt: int, outcome: httpx.Response | httpx.TransportError
    ) -> float | None:
        """Seconds before the next try, or None when this outcome is the last."""
        if not call.retried or attempt >= self.max_retries:
            return None
        if isinstance(outcome, httpx.Response):
            return retry_delay(attempt, outcome) if is_retried(outcome) else None
        return retry_delay(attempt, None)

    def error(self, error: httpx.TransportError) -> APIConnectionError:
        """The SDK's error for a connection that gave no response."""
        if isinstance(error, httpx.TimeoutException):
            return APITimeoutError(f"no answer from {self.url} in time")
        return APIConnectionError(f"cannot reach {self.url}: {error}. Is the service running?")


def _read(kind: type[Wire], response: httpx.Response) -> Wire:
    request_id = response.headers.get("x-request-id")
    if not response.is_success:
        raise status_error(response.status_code, _parse(Problem, response), request_id)
    parsed = _parse(kind, response)
    if parsed is None:
        raise APIError("this version of the SDK cannot read the answer", request_id=request_id)
    return parsed


def _read_readiness(response: httpx.Response) -> Readiness:
    """/readyz has the same body with 200 and 503."""
    return _parse(Readiness, response) or _read(Readiness, response)


def _parse(kind: type[Wire], response: httpx.Response) -> Wire | None:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError:
        return None


class Client:
    """The service, called synchronously; a context manager, or call `close`.

    `api_key` comes from COGRPO_API_KEY when left out, and for a service on this machine from the
    key file that it made. `timeout` bounds the wait for an answer and `connect_timeout` that for a
    connection, in seconds. Methods raise the errors of `cogrpo_client.errors`.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        api_key: str | None = None,
        *,
        max_retries: int = MAX_RETRIES,
        connect_timeout: float = CONNECT_TIMEOUT_SECONDS,
        timeout: float = TIMEOUT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = _Connection(base_url, api_key, max_retries, connect_timeout, timeout)
        self._http = httpx.Client(transport=transport, **self._connection.options)

    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> Generation:
        """Pictures of a prompt; `options` are the fields of `GenerateRequest`."""
        return _read(Generation, self._send(_generate(prompt, options)))

    def info(self) -> Info:
        """The model, its defaults, and every limit of the service."""
        return _read(Info, self._send(_INFO))

    def ready(self) -> Readiness:
        """Whether the service makes pictures now, and what is degraded; never retried."""
        return _read_readiness(self._send(_READY))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: _Call) -> httpx.Response:
        for attempt in range(self._connection.max_retries + 1):
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.request(**call.arguments())
            except httpx.TransportError as error:
                outcome = error
            wait = self._connection.wait(call, attempt, outcome)
            if wait is None:
                break
            time.sleep(wait)
        if isinstance(outcome, httpx.TransportError):
            raise self._connection.error(outcome) from outcome
        return outcome


class AsyncClient:
    """The service, called from asyncio; an async context manager, or call `close`. See `Client`."""

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        api_key: str | None = None,
        *,
        max_retries: int = MAX_RETRIES,
        connect_timeout: float = CONNECT_TIMEOUT_SECONDS,
        timeout: float = TIMEOUT_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = _Connection(base_url, api_key, max_retries, connect_timeout, timeout)
        self._http = httpx.AsyncClient(transport=transport, **self._connection.options)

    async def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> Generation:
        """Pictures of a prompt; `options` are the fields of `GenerateRequest`."""
        return _read(Generation, await self._send(_generate(prompt, options)))

    async def info(self) -> Info:
        """The model, its defaults, and every limit of the service."""
        return _read(Info, await self._send(_INFO))

    async def ready(self) -> Readiness:
        """Whether the service makes pictures now, and what is degraded; never retried."""
        return _read_readiness(await self._send(_READY))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, call: _Call) -> httpx.Response:
        for attempt in range(self._connection.max_retries + 1):
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.request(**call.arguments())
            except httpx.TransportError as error:
                outcome = error
            wait = self._connection.wait(call, attempt, outcome)
            if wait is None:
                break
            await asyncio.sleep(wait)
        if isinstance(outcome, httpx.TransportError):
            raise self._connection.error(outcome) from outcome
        return outcome
