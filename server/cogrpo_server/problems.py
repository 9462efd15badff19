"""Errors of the HTTP API as `application/problem+json` (RFC 9457).

A problem never carries the input's value, an exception's text or a path.
"""

from http import HTTPStatus

from fastapi import Request
from fastapi.responses import Response

from cogrpo_client.types import FieldError, Problem

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 20
_RETRYABLE = frozenset({408, 429, 500, 502, 503, 504})


class ApiError(Exception):
    """A request that gets no result; the application renders it."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors or []
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)
        if status in (409, 412, 422):
            self.headers["x-should-retry"] = "false"


def render(error: ApiError, request_id: str) -> Response:
    """The response of an error."""
    problem = Problem(
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        retryable=error.status in _RETRYABLE,
        errors=error.errors[:MAX_FIELD_ERRORS],
    )
    return Response(
        problem.model_dump_json(), error.status, headers=error.headers, media_type=MEDIA_TYPE
    )


def request_id_of(request: Request) -> str:
    """The id that the middleware gave the request."""
    return str(request.scope.get("cogrpo.request_id", ""))
