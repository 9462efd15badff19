"""The route that has a version tested: what is asked for, refused and shown."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cogrpo_client.types import Policy
from cogrpo_core.exchange.policy_evaluations import EvaluationRecord, Evaluations
from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_core.exchange.training_cycles import Cycles
from cogrpo_server.app import create_app
from cogrpo_server.engine import Engine
from cogrpo_server.evaluations import PolicyEvaluations
from cogrpo_server.keys import load_keys
from cogrpo_server.policies import Policies
from tests.core.exchange.policies import stub
from tests.server.test_policies import code
from tests.server.test_training import caller

FACTS: Any = {
    "status": "completed", "against": "base", "suite": "shapes", "started": 1, "finished": 2,
    "prompts": 30, "effect": 0.4, "interval": [0.1, 0.7], "rewards": {"align": 0.5},
    "passed": True, "reasons": [], "seconds": [1.0, 1.0],
}  # fmt: skip


@pytest.fixture
def training(tmp_path: Path) -> Path:
    return tmp_path / "training"


@pytest.fixture
def evaluations(training: Path) -> Evaluations:
    return Evaluations(training)


@pytest.fixture
def registry(tmp_path: Path) -> PolicyRegistry:
    return PolicyRegistry(tmp_path / "policies")


@pytest.fixture
def attended(training: Path) -> Iterator[None]:
    """With a trainer that does nothing."""
    with Cycles(training).attending() as ours:
        assert ours
        yield


@pytest.fixture
def app(engine: Engine, keys_file: Path, registry: PolicyRegistry, training: Path) -> FastAPI:
    policies = Policies(registry, evaluations=PolicyEvaluations(training, has_trainer=True))
    return create_app(engine, load_keys(keys_file), policies=policies)


@pytest.fixture
async def admin(app: FastAPI, api_keys: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with caller(app, api_keys["admin"]) as client:
        yield client


def path(version: str) -> str:
    return f"/admin/policies/{version}/evaluate"


def record_of(evaluations: Evaluations, version: str) -> EvaluationRecord:
    record = evaluations.get(version)
    assert record is not None
    return record


async def shown(admin: httpx.AsyncClient, version: str) -> Any:
    """The evaluation, which a list shows too."""
    one = Policy.model_validate((await admin.get(f"/admin/policies/{version}")).json())
    page = (await admin.get("/admin/policies")).json()["data"]
    (listed,) = [Policy.model_validate(entry) for entry in page if entry["version"] == version]
    assert one.evaluation == listed.evaluation
    return one.evaluation


@pytest.mark.usefixtures("attended")
async def test_an_evaluation_is_asked_for_and_shown_to_its_end(
    admin: httpx.AsyncClient, registry: PolicyRegistry, evaluations: Evaluations
) -> None:
    version = stub(registry, 1)
    assert await shown(admin, version) is None
    answer = await admin.post(path(version), json={"suite": "shapes", "prompts": 30})
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/admin/policies/{version}"
    asked = Policy.model_validate(answer.json())
    assert asked.evaluation is not None
    assert (asked.version, asked.evaluation.status) == (version, "queued")
    assert (asked.evaluation.against, asked.evaluation.suite) == ("base", "shapes")
    record = record_of(evaluations, version)
    assert (record.suite, record.prompts, record.against) == ("shapes", 30, "base")

    refused = await admin.post(path(version), json={})
    assert code(refused) == (409, "evaluation_under_way")
    assert refused.headers["x-should-retry"] == "false"
    assert record_of(evaluations, version) == record

    evaluations.write(record.model_copy(update={"status": "running", "started": 5}))
    running = await shown(admin, version)
    assert (running.status, running.started, running.error) == ("running", 5, None)
    evaluations.write(record.model_copy(update={"status": "completed", "facts": FACTS}))
    done = await shown(admin, version)
    assert (done.status, done.effect, done.interval) == ("completed", 0.4, (0.1, 0.7))
    assert (done.passed, done.prompts, done.rewards) == (True, 30, {"align": 0.5})
    assert (await admin.post(path(version), json={})).status_code == 202


@pytest.mark.usefixtures("attended")
async def test_it_is_against_the_champion_if_nobody_is_named(
    admin: httpx.AsyncClient, registry: PolicyRegistry, evaluations: Evaluations
) -> None:
    champion, version = stub(registry, 1), stub(registry, 2)
    registry.move("champion", champion, expected=None, who="test")
    assert (await admin.post(path(version), json={})).status_code == 202
    assert record_of(evaluations, version).against == champion
    assert (await admin.post(path(champion), json={"against": "base"})).status_code == 202
    assert record_of(evaluations, champion).against == "base"
    evaluations.write(record_of(evaluations, champion).model_copy(update={"status": "failed"}))
    unknown = "20260101T000000000Z-0123456789abcdef"
    for body in ({}, {"against": champion}, {"against": unknown}, {"against": "../x"}):
        answer = await admin.post(path(champion), json=body)
        assert code(answer) == (422, "invalid_request")
        assert answer.json()["errors"][0]["pointer"] == "/against"


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        ({"code": "damaged", "detail": "version x is damaged"}, 409, "version x is damaged"),
        ({"code": "invalid", "detail": "no such suite"}, 422, "no such suite"),
        ({"code": "failed", "detail": "OSError: /secret/path"}, 500, "trainer.log says why"),
        ({"status": "cancelled", "code": "cancelled", "detail": "it was"}, 409, "it was"),
    ],
)
@pytest.mark.usefixtures("attended")
async def test_why_it_failed_is_said_without_what_callers_may_not_know(
    admin: httpx.AsyncClient,
    registry: PolicyRegistry,
    evaluations: Evaluations,
    end: dict[str, str],
    status: int,
    words: str,
) -> None:
    version = stub(registry, 1)
    await admin.post(path(version), json={})
    ended = record_of(evaluations, version).model_copy(update={"status": "failed"} | end)
    evaluations.write(ended)
    evaluation = await shown(admin, version)
    assert evaluation.status == ended.status
    assert (evaluation.error.status, evaluation.error.code) == (status, end["code"])
    assert words in evaluation.error.detail and "secret" not in evaluation.error.detail


@pytest.mark.usefixtures("attended")
async def test_the_same_key_is_the_same_evaluation(
    admin: httpx.AsyncClient, registry: PolicyRegistry
) -> None:
    version, other = stub(registry, 1), stub(registry, 2)
    headers = {"Idempotency-Key": "k1"}
    first = await admin.post(path(version), json={}, headers=headers)
    again = await admin.post(path(version), json={}, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    for place, body in ((version, {"prompts": 20}), (other, {})):
        reused = await admin.post(path(place), json=body, headers=headers)
        assert code(reused) == (422, "idempotency_key_reused")


@pytest.mark.usefixtures("attended")
async def test_cancel_is_a_wish_that_the_trainer_sees(
    admin: httpx.AsyncClient, registry: PolicyRegistry, evaluations: Evaluations
) -> None:
    version = stub(registry, 1)
    cancel = path(version) + "/cancel"
    assert code(await admin.post(cancel)) == (404, "not_found")
    await admin.post(path(version), json={})
    answer = await admin.post(cancel)
    assert (answer.status_code, answer.json()["evaluation"]["status"]) == (200, "queued")
    assert evaluations.is_cancelled(version)
    record = record_of(evaluations, version)
    evaluations.write(record.model_copy(update={"status": "completed", "facts": FACTS}))
    assert (await admin.post(cancel)).json()["evaluation"]["passed"]


async def test_a_version_of_a_cycle_has_the_gates_evaluation(
    admin: httpx.AsyncClient, registry: PolicyRegistry, evaluations: Evaluations
) -> None:
    version = stub(registry, 1, evidence={"evaluation": FACTS})
    assert (await shown(admin, version)).effect == 0.4
    folder = evaluations.request(version, against="base")
    assert (await shown(admin, version)).status == "queued"
    assert folder.version == version


async def test_without_a_trainer_the_route_says_so(
    admin: httpx.AsyncClient,
    engine: Engine,
    keys_file: Path,
    api_keys: dict[str, str],
    registry: PolicyRegistry,
    training: Path,
) -> None:
    version = stub(registry, 1)
    away = await admin.post(path(version), json={})
    assert code(away) == (503, "trainer_away")
    assert "Retry-After" in away.headers
    for policies in (
        Policies(registry),
        Policies(registry, evaluations=PolicyEvaluations(training)),
    ):
        app = create_app(engine, load_keys(keys_file), policies=policies)
        async with caller(app, api_keys["admin"]) as client:
            assert code(await client.post(path(version), json={})) == (409, "no_trainer")


@pytest.mark.usefixtures("attended")
async def test_what_cannot_be_asked_for(
    admin: httpx.AsyncClient, http: httpx.AsyncClient, registry: PolicyRegistry
) -> None:
    unknown = "20260101T000000000Z-0123456789abcdef"
    for name in (unknown, "base", "nonsense"):
        assert code(await admin.post(path(name), json={})) == (404, "unknown")
        assert code(await admin.post(path(name) + "/cancel")) == (404, "unknown")
    version = stub(registry, 1)
    for body in ({"prompts": 19}, {"prompts": 10_001}, {"suite": ""}, {"steps": 3}):
        assert code(await admin.post(path(version), json=body)) == (422, "invalid_request")
    assert (await http.post(path(version), json={})).status_code == 403
