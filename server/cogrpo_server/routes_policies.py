"""/admin/policies: the versions of what was learned, and which of them serves."""

from fastapi import APIRouter, Query, Request, Response

from cogrpo_client.types import (
    Canary,
    CanaryRequest,
    EvaluateRequest,
    Page,
    Policy,
    PromoteRequest,
    Promotion,
    RollbackRequest,
)
from cogrpo_client.types.page import DEFAULT_PAGE, MAX_PAGE
from cogrpo_core.exchange.policy_manifest import is_id
from cogrpo_server.body import read_body
from cogrpo_server.openapi import body_of
from cogrpo_server.policies import Policies
from cogrpo_server.problems import ApiError, invalid
from cogrpo_server.routes_generate import caller_of, idempotency_key_of
from cogrpo_server.training import digest, key_digest

_PATH = "/admin/policies"


def policies_routes(policies: Policies | None) -> APIRouter:
    """The routes before the registry; without one they answer 503."""
    router = APIRouter()

    def registry() -> Policies:
        if policies is None:
            raise ApiError(503, "unavailable", "There is no registry here.", retry_after=60)
        return policies

    @router.get(_PATH, response_model=Page[Policy])
    async def listing(
        limit: int = Query(DEFAULT_PAGE, ge=1, le=MAX_PAGE),
        after: str | None = Query(None, max_length=200),
    ) -> Page[Policy]:
        """All versions, newest first, without their evidence."""
        if after is not None and not is_id(after):
            raise invalid("/after", "not a cursor of this service")
        found, more = await registry().page(limit, after)
        return Page(data=found, next=found[-1].version if more and found else None)

    @router.get(_PATH + "/canary", response_model=Canary)
    async def canary() -> Canary:
        """Who is tried on a share of the requests."""
        return await registry().canary()

    @router.post(_PATH + "/canary", response_model=Canary, openapi_extra=body_of("CanaryRequest"))
    async def set_canary(request: Request) -> Canary:
        """Says which share of the requests runs on the challenger; 0 ends it."""
        wanted, _ = await read_body(request, CanaryRequest)
        return await registry().set_share(
            wanted.share, reason=wanted.reason, caller=caller_of(request)
        )

    @router.post(
        _PATH + "/rollback", response_model=Promotion, openapi_extra=body_of("RollbackRequest")
    )
    async def rollback(request: Request) -> Promotion:
        """The former champion again."""
        wanted, _ = await read_body(request, RollbackRequest)
        return await registry().roll_back(
            expected=wanted.expected,
            reason=wanted.reason,
            caller=caller_of(request),
            key=idempotency_key_of(request),
        )

    @router.get(_PATH + "/{version}", response_model=Policy)
    async def policy(version: str) -> Policy:
        """One version, with its evidence and how it was judged."""
        return await registry().get(version)

    @router.post(
        _PATH + "/{version}/promote",
        response_model=Promotion,
        openapi_extra=body_of("PromoteRequest"),
    )
    async def promote(version: str, request: Request) -> Promotion:
        """Makes a version the champion; every engine follows within seconds."""
        wanted, _ = await read_body(request, PromoteRequest)
        if wanted.force and not wanted.reason.strip():
            raise invalid("/reason", "a forced promotion needs a reason")
        return await registry().promote(
            version,
            expected=wanted.expected,
            force=wanted.force,
            reason=wanted.reason,
            caller=caller_of(request),
        )

    @router.post(
        _PATH + "/{version}/evaluate",
        response_model=Policy,
        status_code=202,
        openapi_extra=body_of("EvaluateRequest"),
    )
    async def evaluate(version: str, request: Request, response: Response) -> Policy:
        """Has the trainer test a version against another, the champion if none is named."""
        wanted, body = await read_body(request, EvaluateRequest)
        found = await registry().evaluate(
            version, wanted, key=key_digest(request), body=digest(body)
        )
        response.headers["Location"] = f"{_PATH}/{version}"
        return found

    @router.post(_PATH + "/{version}/evaluate/cancel", response_model=Policy)
    async def cancel_evaluation(version: str) -> Policy:
        """Ends a version's evaluation; one that has ended stays as it is."""
        return await registry().cancel_evaluation(version)

    return router
