"""What can be said of both clients without a server: one surface, settings, secrets."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import cogrpo_client
from cogrpo_client import AsyncClient, Client, ConfigurationError
from cogrpo_client import async_resources as later
from cogrpo_client import resources as now
from cogrpo_client.calls import Call
from cogrpo_client.options import GenerateOptions
from cogrpo_client.types import GenerateRequest

PAIRS = [
    (Client, AsyncClient),
    (cogrpo_client.Job, cogrpo_client.AsyncJob),
    (cogrpo_client.CycleRun, cogrpo_client.AsyncCycleRun),
    (cogrpo_client.EvaluationRun, cogrpo_client.AsyncEvaluationRun),
    (cogrpo_client.EventStream, cogrpo_client.AsyncEventStream),
    (cogrpo_client.CycleStream, cogrpo_client.AsyncCycleStream),
    (now.Generations, later.AsyncGenerations),
    (now.Admin, later.AsyncAdmin),
    (now.Cycles, later.AsyncCycles),
    (now.Policies, later.AsyncPolicies),
]


def surface(kind: type) -> dict[str, str]:
    members = {
        name: str(inspect.signature(member)).replace("Async", "").replace("async_", "")
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }
    properties = inspect.getmembers(kind, lambda member: isinstance(member, property))
    return members | {name: "property" for name, _ in properties}


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_both_clients_have_one_surface(sync: type, asynchronous: type) -> None:
    assert surface(sync) == surface(asynchronous)
    for name, member in inspect.getmembers(sync, inspect.isfunction):
        if not name.startswith("_"):
            assert member.__doc__, name
            twin = getattr(asynchronous, name)
            assert (twin.__doc__ or "").replace("`async with`", "`with`") == member.__doc__


def test_the_options_are_the_fields_of_the_request() -> None:
    assert (
        GenerateOptions.__annotations__.keys() | {"prompt"} == GenerateRequest.model_fields.keys()
    )


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_settings_that_make_no_sense_are_refused(kind: Any) -> None:
    for url in ("service:8000", "ftp://service", "http://", ""):
        with pytest.raises(ConfigurationError, match="not an http"):
            kind(url)
    for url in ("http://me:secret@service", "http://service?key=secret", "http://service#secret"):
        with pytest.raises(ConfigurationError) as caught:
            kind(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="max_retries"):
        kind(max_retries=-1)
    for name in ("timeout", "job_timeout", "connect_timeout"):
        for seconds in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ConfigurationError, match=name):
                kind(**{name: seconds})


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_key_is_in_no_message_and_no_repr(kind: Any) -> None:
    client = kind("http://127.0.0.1:1", "top-secret")
    parts = [client, *vars(client).values(), *vars(client._transport).values()]
    assert "top-secret" not in " ".join(map(repr, parts))
    for key in ("top-secret\n", "top-secret\u00fc", " top-secret"):
        with pytest.raises(ConfigurationError) as caught:
            kind("http://127.0.0.1:1", key)
        assert "top-secret" not in str(caught.value)


def test_an_idempotency_key_must_fit_its_header() -> None:
    with Client("http://127.0.0.1:1") as client:
        for key in ("", "two words", "\u00fc", "x" * 256):
            with pytest.raises(ConfigurationError, match="idempotency_key"):
                client.generate("x", idempotency_key=key)


def test_on_this_machine_the_admin_routes_have_the_admin_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [
        {"id": "default", "key": "key-generate", "scopes": ["generate"]},
        {"id": "admin", "key": "key-admin", "scopes": ["generate", "admin"]},
    ]
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": keys}))
    monkeypatch.delenv("COGRPO_API_KEY", raising=False)
    monkeypatch.setenv("COGRPO_KEY_FILE", str(file))

    def sent(path: str, key: str | None = None) -> str:
        with Client("http://127.0.0.1:1", key) as client:
            call: Call[Any] = Call("GET", path, lambda answer: answer)
            request = client._transport.connection.request(client._http.build_request, call)
            return request.headers["authorization"]

    assert sent("/v1/info") == "Bearer key-generate"
    assert sent("/admin/drain") == "Bearer key-admin"
    assert sent("/admin/drain", "mine") == "Bearer mine"
