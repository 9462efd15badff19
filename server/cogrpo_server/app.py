"""The HTTP application: parse, call the backend, render. It runs under any ASGI server."""

import base64
import hashlib
import logging
import re
import secrets
from typing import NoReturn
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cogrpo_client.types import (
    MAX_SEED,
    FieldError,
    GeneratedImage,
    GenerateRequest,
    Generation,
    Info,
    Readiness,
    Schedule,
)
from cogrpo_server.body import read_generate_request
from cogrpo_server.idempotency import KeyReused, Replays
from cogrpo_server.jobs import Backend, Job, Made, Refused
from cogrpo_server.keys import KeyRing
from cogrpo_server.logs import AccessLog
from cogrpo_server.negotiation import PNG, choose
from cogrpo_server.openapi import GENERATE_EXTRA, document
from cogrpo_server.problems import ApiError, render, request_id_of
from cogrpo_server.security import Guard, LastResort, RequestId

_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")
_STATUS = {"overloaded": 429, "timeout": 504, "loading": 503, "stopping": 503, "failed": 500}

logger = logging.getLogger(__name__)


def create_app(backend: Backend, keys: KeyRing) -> FastAPI:
    """The routes of the service before a backend, closed to all who have no key of `keys`."""
    app = FastAPI(title="Co-GRPO Serve", docs_url=None, redoc_url=None)
    replays = Replays()

    @app.post("/generate", response_model=Generation, openapi_extra=GENERATE_EXTRA)
    async def generate(request: Request) -> Response:
        """Pictures of a prompt: JSON with base64 PNG files or, for one picture, a PNG file."""
        representation = choose(request.headers.get("accept"))
        wanted, body = await read_generate_request(request)
        if representation == "png" and wanted.n != 1:
            _raise_invalid("/n", f"Accept: {PNG} gives one picture; ask for JSON or for n = 1")
        job = _job(wanted, request_id_of(request))
        outcome = await _run(backend, replays, request, job, hashlib.sha256(body).digest())
        if isinstance(outcome, Refused):
            _raise_refused(outcome, wanted)
        made = outcome
        if representation == "png":
            return _png_response(made)
        return _json_response(made, job.request_id)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> Response:
        """Whether pictures can be made now; what is degraded does not make the service unready."""
        status = await backend.status()
        readiness = Readiness(status=status.state, degraded=status.degraded)
        return JSONResponse(readiness.model_dump(), 200 if status.state == "ready" else 503)

    @app.get("/v1/info", response_model=Info)
    async def info() -> Info:
        """The model, its defaults, and every limit."""
        status = await backend.status()
        if status.info is None:
            raise ApiError(503, "not_ready", "The model is not loaded.", retry_after=5)
        return status.info

    _handle_errors(app)
    app.add_middleware(Guard, keys=keys)
    app.add_middleware(LastResort)
    app.add_middleware(AccessLog)
    app.add_middleware(RequestId)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


def _job(wanted: GenerateRequest, request_id: str) -> Job:
    given = wanted.schedule
    schedule = given.model_dump(exclude_none=True) if isinstance(given, Schedule) else given
    return Job(
        id=f"gen_{secrets.token_hex(12)}",
        request_id=request_id,
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        n=wanted.n,
        seed=secrets.randbelow(MAX_SEED + 1) if wanted.seed is None else wanted.seed,
        store=wanted.store,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        schedule=schedule,
        size=wanted.height_and_width(),
    )


async def _run(
    backend: Backend, replays: Replays, request: Request, job: Job, digest: bytes
) -> Made | Refused:
    """What became of a job, run once for each Idempotency-Key. Raises `ApiError`."""
    key = request.headers.get("idempotency-key")
    if key is None:
        outcome = await backend.generate(job)
    else:
        if not _IDEMPOTENCY_KEY.fullmatch(key):
            raise ApiError(
                400, "bad_idempotency_key", "Idempotency-Key: 1 to 255 ASCII characters."
            )
        try:
            caller = str(request.scope.get("cogrpo.caller", ""))
            outcome = await replays.run((caller, key), digest, lambda: backend.generate(job))
        except KeyReused:
            raise ApiError(
                422, "idempotency_key_reused", "This Idempotency-Key came with another body before."
            ) from None
    return outcome


def _raise_refused(refused: Refused, wanted: GenerateRequest) -> NoReturn:
    if refused.code == "invalid":
        by_size = wanted.size is not None and refused.pointer in ("/height", "/width")
        _raise_invalid("/size" if by_size else refused.pointer, refused.message)
    raise ApiError(
        _STATUS[refused.code], refused.code, refused.message, retry_after=refused.retry_after
    )


def _raise_invalid(pointer: str, message: str) -> NoReturn:
    errors = [FieldError(pointer=pointer, message=message)]
    raise ApiError(
        422, "invalid_request", "The request has a value that cannot be used.", errors=errors
    )


def _json_response(made: Made, request_id: str) -> Response:
    generation = Generation(
        id=made.id,
        request_id=request_id,
        created=made.created,
        stored=made.stored,
        images=[
            GeneratedImage(
                b64_png=base64.b64encode(picture.png).decode(),
                seed=picture.seed,
                trajectory_id=picture.trajectory_id,
            )
            for picture in made.pictures
        ],
        attribution=made.attribution,
    )
    return Response(
        generation.model_dump_json(), headers=_facts(made), media_type="application/json"
    )


def _png_response(made: Made) -> Response:
    (picture,) = made.pictures
    headers = {"X-Cogrpo-Seed": str(picture.seed), "X-Cogrpo-Trajectory-Id": picture.trajectory_id}
    return Response(picture.png, headers=headers | _facts(made), media_type=PNG)


def _facts(made: Made) -> dict[str, str]:
    """The attribution as headers, as X-Cogrpo-Policy-Version and so on."""
    facts = {"generation_id": made.id, **made.attribution.model_dump()}
    return {
        "X-Cogrpo-" + name.replace("_", "-").title(): quote(str(value), safe=" :/@+,")
        for name, value in facts.items()
    } | {"Vary": "Accept", "Cache-Control": "no-store"}


def _handle_errors(app: FastAPI) -> None:
    """Every error leaves as a problem, also those of routing and those that nobody foresaw."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return render(error, request_id_of(request))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code, detail = {
            404: ("not_found", "There is no such route."),
            405: ("method_not_allowed", "The route has no such method."),
        }.get(error.status_code, ("http_error", "The request cannot be handled."))
        headers = dict(error.headers or {})
        return render(
            ApiError(error.status_code, code, detail, headers=headers), request_id_of(request)
        )

    @app.exception_handler(ClientDisconnect)
    async def client_gone(request: Request, _: ClientDisconnect) -> Response:
        return render(
            ApiError(400, "incomplete_body", "The body ended early."), request_id_of(request)
        )
