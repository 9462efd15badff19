"""Keys, scopes and request ids: closed by default."""

from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from cogrpo_server.app import create_app
from cogrpo_server.jobs import EngineStatus, Job, Outcome, Progress, Refused, Remade
from cogrpo_server.keys import ensure_keys, load_keys
from cogrpo_server.security import proxy_middlewares
from cogrpo_server.settings import Settings, SettingsError

OPEN = {"/livez", "/readyz"}
CONTRACT = {
    "/admin/drain",
    "/admin/policies",
    "/admin/policies/canary",
    "/admin/policies/rollback",
    "/admin/policies/{version}",
    "/admin/policies/{version}/evaluate",
    "/admin/policies/{version}/evaluate/cancel",
    "/admin/policies/{version}/promote",
    "/admin/replicas",
    "/admin/training/cycles",
    "/admin/training/cycles/{cycle_id}",
    "/admin/training/cycles/{cycle_id}/cancel",
    "/admin/training/cycles/{cycle_id}/events",
    "/generate",
    "/healthz",
    "/livez",
    "/metrics",
    "/readyz",
    "/v1/generations",
    "/v1/generations/{generation_id}",
    "/v1/generations/{generation_id}/cancel",
    "/v1/generations/{generation_id}/events",
    "/v1/generations/{generation_id}/feedback",
    "/v1/generations/{generation_id}/replay",
    "/v1/images/generations",
    "/v1/info",
    "/v1/models",
}


def routes(app: FastAPI) -> list[tuple[str, str]]:
    return [
        (method, getattr(route, "path", ""))
        for route in app.routes
        for method in sorted(getattr(route, "methods", None) or {"GET"})
    ]


async def test_every_route_but_health_needs_a_key(app: FastAPI) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as anonymous:
        walked = routes(app)
        assert len(walked) >= 5
        for method, path in [*walked, ("GET", "/nowhere"), ("POST", "/admin/nowhere")]:
            response = await anonymous.request(method, path)
            if path in OPEN:
                assert response.status_code == 200, path
            else:
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"] == "Bearer"
                assert method == "HEAD" or response.json()["code"] == "unauthorized"


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer wrong-key-of-some-length",
        "Basic dXNlcjpwYXNz",
        "Bearer \u00fc\u00fc",
        "bearer" + " x" * 500,
    ],
)
async def test_what_is_no_known_key_is_401(http: httpx.AsyncClient, header: str) -> None:
    pair = (b"Authorization", header.encode("latin-1"))
    response = await http.get("/v1/info", headers=[pair])
    assert response.status_code == 401


async def test_a_key_in_the_query_is_no_key(app: FastAPI, api_keys: dict[str, str]) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as anonymous:
        response = await anonymous.get("/v1/info", params={"key": api_keys["admin"]})
    assert response.status_code == 401


async def test_scopes(http: httpx.AsyncClient, api_keys: dict[str, str]) -> None:
    assert (await http.get("/v1/info")).status_code == 200
    assert (await http.get("/admin/policies")).status_code == 403
    admin = {"Authorization": f"Bearer {api_keys['admin']}"}
    assert (await http.get("/v1/info", headers=admin)).status_code == 200
    for path in ("/metrics", "/admin/replicas", "/admin/drain"):
        assert (await http.get(path)).status_code == 403
        assert (await http.get(path, headers=admin)).status_code == 200
    assert (await http.post("/admin/drain", json={})).status_code == 403
    assert (await http.get("/admin/nowhere", headers=admin)).status_code == 404


async def test_request_ids_are_taken_when_harmless_and_made_otherwise(
    http: httpx.AsyncClient,
) -> None:
    for path in ("/livez", "/v1/info", "/nowhere"):
        response = await http.get(path, headers={"X-Request-ID": "my-id.7"})
        assert response.headers.get_list("x-request-id") == ["my-id.7"]
    for bad in ("", "a b", "x" * 129, 'x"y'):
        response = await http.get("/livez", headers={"X-Request-ID": bad})
        assert response.headers["x-request-id"].startswith("req_")


async def test_an_unforeseen_error_tells_nothing(keys_file: Path, api_keys: dict[str, str]) -> None:
    class Broken:
        async def run(self, job: Job) -> AsyncGenerator[Progress | Outcome]:
            if job:
                raise RuntimeError("secret detail")
            yield Refused("failed", "")  # a generator, as a backend's is

        async def replay(self, data: bytes, trajectory_id: str) -> Remade | Refused:
            raise RuntimeError("secret detail")

        async def status(self) -> EngineStatus:
            raise RuntimeError("secret detail")

    transport = httpx.ASGITransport(create_app(Broken(), load_keys(keys_file)))
    headers = {"Authorization": f"Bearer {api_keys['default']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for response, code in (
            (await client.post("/generate", json={"prompt": "a"}, headers=headers), "failed"),
            (await client.get("/readyz"), "internal_error"),
        ):
            assert response.status_code == 500
            assert response.json()["code"] == code
            assert response.json()["request_id"] == response.headers["x-request-id"]
            assert "secret" not in response.text


async def test_the_proxys_own_routes_are_closed() -> None:
    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("reached")

    (middleware,) = proxy_middlewares()
    app = middleware.cls(proxy, *middleware.args, **middleware.kwargs)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        for path in ("/-/routes", "/-/healthz"):
            response = await http.get(path)
            assert response.status_code == 404
            assert response.headers["x-request-id"]


async def test_requests_are_logged_by_id_without_what_they_hold(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "cogrpo_server.access"):
        await http.get("/livez")
        await http.get("/a%0Ab?secret=1", headers={"X-Request-ID": "mine"})
        await http.post("/generate", json={"prompt": "secret"})
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("GET '/a\\nb' 403 ")
    assert lines[0].endswith(" mine")
    assert lines[1].startswith("POST '/generate' 200 ")
    assert "secret" not in caplog.text


async def test_web_sockets_are_closed(app: FastAPI) -> None:
    (middleware,) = proxy_middlewares()
    gate = middleware.cls(app, *middleware.args, **middleware.kwargs)
    for application in (app, gate):
        sent: list[Message] = []

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        scope = {"type": "websocket", "path": "/generate", "headers": []}
        await application(scope, receive, send)
        assert [message["type"] for message in sent] == ["websocket.close"]


async def test_the_proxy_stops_reading_a_body_that_is_too_large() -> None:
    taken: list[int] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["more_body"]:
            taken.append(len(message["body"]))
        taken.append(len(message["body"]))

    async def endless() -> Message:
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    (middleware,) = proxy_middlewares()
    scope = {"type": "http", "path": "/generate", "headers": []}
    gate = middleware.cls(application, *middleware.args, **middleware.kwargs)
    await gate(scope, endless, send)
    assert sum(taken) == 70_000  # more than the limit, so that the application refuses it


async def test_openapi_has_body_and_problems(http: httpx.AsyncClient, app: FastAPI) -> None:
    document = (await http.get("/openapi.json")).json()
    assert set(document["paths"]) == CONTRACT
    schemas = document["components"]["schemas"]
    assert {"GenerateRequest", "Schedule", "Generation", "Info", "Problem"} <= set(schemas)
    assert str(document).count("#/$defs") == 0
    assert document["paths"]["/livez"]["get"]["security"] == []


def test_keys_are_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ensure_keys(path)
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    ensure_keys(path)
    assert path.read_text() == text
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("text", ["", "{}", '{"keys": []}', '{"keys": [{"id": "a"}]}', "[1"])
def test_a_damaged_key_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match="is damaged"):
        load_keys(path)


def test_other_hosts_need_keys_that_somebody_chose(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        Settings(data_dir=tmp_path, host=host).check_host()
    with pytest.raises(SettingsError, match="--keys-file"):
        Settings(data_dir=tmp_path, host="0.0.0.0").check_host()
    Settings(data_dir=tmp_path, host="0.0.0.0", keys_file=tmp_path / "k").check_host()
    with pytest.raises(SettingsError, match="IP address"):
        Settings(data_dir=tmp_path, host="example.org").check_host()
