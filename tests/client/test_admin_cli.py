"""`cogrpo cycles` and `cogrpo policies`: requests, tables, JSON, refusals in one line."""

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from cogrpo_client import cli
from tests.client.faulty import FaultyServer, answer, stream
from tests.client.samples import cycle, cycle_wire, problem
from tests.client.test_jobs import CANARY, EVALUATION, POLICY, PROMOTION

Run = Callable[..., tuple[object, str, str]]
COMMANDS = {"cycles": "cogrpo_client.cycles_cli:app", "policies": "cogrpo_client.policies_cli:app"}
VERSION = "20261124T110527123Z-e6af8efab772ffbd"
CYCLE = "cycle-20261124T143522397-0123abcd"
JUDGED = EVALUATION | {"prompts": 30, "interval": [0.05, 0.15], "rewards": {"align": 0.5}}


class Installed(list):
    """The entry points as pyproject.toml has them."""

    names = frozenset(COMMANDS)


@pytest.fixture
def run(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command in this process; gives status, output and error."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COGRPO_API_KEY", "top-secret")
    monkeypatch.setattr("cogrpo_client.retry.Backoff.seconds", lambda *_: 0.0)
    monkeypatch.setattr("cogrpo_client.waiting.FIRST_POLL_SECONDS", 0.01)
    points = Installed(EntryPoint(name, value, cli.GROUP) for name, value in COMMANDS.items())
    monkeypatch.setattr(
        cli, "entry_points", lambda group: points if group == cli.GROUP else Installed()
    )

    def run(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([*arguments, "--server", server.url])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


def page(*entries: dict[str, Any], next: str | None = None) -> Any:
    return answer(200, {"data": list(entries), "next": next})


def test_the_commands_are_entry_points() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name, value in COMMANDS.items():
        assert f'\n{name} = "{value}"\n' in text
        assert name in cli._HELP


def test_cycles_are_a_table_or_json(run: Run, server: FaultyServer) -> None:
    done = cycle(
        "completed", id=CYCLE, iteration=4, iterations=4, started=1, policy_version=VERSION,
        evaluation=JUDGED,
    )  # fmt: skip
    training = cycle("running", phase="schedule", iteration=1, iterations=4)
    server.script(page(training, next="c"), page(done))
    status, out, err = run("cycles", "list")
    assert (status, err) == (0, "")
    header, first, second = out.splitlines()
    assert header.split()[:2] == ["cycle", "status"]
    assert "running, schedule" in first and "1/4" in first
    for part in (CYCLE, VERSION, "4/4", "passed, +0.1000 (+0.0500 to +0.1500)"):
        assert part in second
    assert server.requests[0].headers["authorization"] == "Bearer top-secret"
    server.script(page(training, done, next="c"))
    status, out, _ = run("cycles", "list", "--limit", "2", "--json")
    assert (status, len(server.requests)) == (0, 1)
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["cyc_1", CYCLE]


def test_a_cycle_is_triggered_shown_and_cancelled(run: Run, server: FaultyServer) -> None:
    server.script(answer(202, cycle("queued", reason="why not")))
    status, out, err = run(
        "cycles", "trigger", "--model-iterations", "3", "--schedule-iterations", "0",
        "--reason", "why not",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "queued" in out and "why not" in out
    assert server.requests[0].json == {
        "model_iterations": 3, "schedule_iterations": 0, "reason": "why not",
    }  # fmt: skip
    server.script(answer(200, cycle("failed", error=problem(409, "diverged"))))
    status, out, _ = run("cycles", "show", "cyc_1")
    assert (status, "What to do." in out) == (0, True)
    assert server.requests[0].target == "/admin/training/cycles/cyc_1"
    server.script(answer(200, cycle("cancelled")))
    status, out, _ = run("cycles", "cancel", "cyc_1", "--json")
    assert (status, json.loads(out)["status"]) == (0, "cancelled")
    assert server.requests[0].target == "/admin/training/cycles/cyc_1/cancel"


def test_waiting_for_a_cycle_shows_how_far_it_is(
    run: Run, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [
        cycle("queued"),
        cycle("running", phase="model", iteration=1, iterations=2),
        cycle("completed", iteration=2, iterations=2, policy_version=VERSION, promoted=True),
    ]
    script = (answer(202, events[0]), stream(cycle_wire(events)))
    server.script(*script)
    status, out, err = run("cycles", "trigger", "--wait", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["policy_version"] == VERSION
    monkeypatch.setenv("FORCE_COLOR", "1")
    server.script(*script)
    status, out, err = run("cycles", "trigger", "--wait")
    assert status == 0 and "2/2" in err and VERSION in out


def test_a_cycle_that_failed_is_shown_and_said(run: Run, server: FaultyServer) -> None:
    failed = cycle("failed", error=problem(409, "diverged"))
    server.script(answer(202, cycle("queued")), stream(cycle_wire([failed])))
    status, out, err = run("cycles", "trigger", "--wait", "--json")
    assert (status, json.loads(out)["status"]) == (2, "failed")
    assert err == "cogrpo: cyc_1 failed: What to do.\n"


def test_policies_are_a_table_or_json(run: Run, server: FaultyServer) -> None:
    policy = POLICY | {"version": VERSION, "aliases": ["champion"], "evaluation": JUDGED}
    server.script(page(policy))
    status, out, err = run("policies", "list")
    assert (status, err) == (0, "")
    for part in (VERSION, "full", "passed", "champion", "+0.1000"):
        assert part in out.splitlines()[1]
    judged = {
        "status": "passed",
        "created": 1,
        "caller": "trainer",
        "reason": "[bold]yes[/bold]",
    }
    server.script(answer(200, policy | {"judgement": judged, "evidence": {"a": 1}}))
    status, out, _ = run("policies", "show", VERSION)
    assert status == 0
    for part in ("[bold]yes[/bold]", "trainer", "align 0.5000", "30 prompts", "against"):
        assert part in out
    status, out, _ = run("policies", "show", VERSION, "--json")
    assert json.loads(out)["evidence"] == {"a": 1}


def test_a_version_is_evaluated_and_waited_for(run: Run, server: FaultyServer) -> None:
    waiting = POLICY | {"evaluation": EVALUATION | {"status": "queued", "passed": None}}
    server.script(answer(202, waiting))
    status, out, _ = run("policies", "evaluate", "p2", "--against", "base", "--prompts", "30")
    assert (status, "queued" in out) == (0, True)
    assert server.requests[0].target == "/admin/policies/p2/evaluate"
    assert server.requests[0].json == {"against": "base", "prompts": 30}
    done = answer(200, POLICY | {"evaluation": JUDGED})
    server.script(answer(202, waiting), answer(200, waiting), done)
    status, out, err = run("policies", "evaluate", "p2", "--suite", "s", "--wait", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["evaluation"]["passed"]
    failed = EVALUATION | {"status": "failed", "error": problem(409, "damaged")}
    server.script(answer(202, waiting), answer(200, POLICY | {"evaluation": failed}))
    status, out, err = run("policies", "evaluate", "p2", "--wait")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "What to do." in err


@pytest.mark.parametrize(
    ("arguments", "body", "sent"),
    [
        (
            ["promote", "p2", "--force", "--reason", "r", "--expected", "base"],
            PROMOTION,
            'POST /admin/policies/p2/promote {"force":true,"reason":"r","expected":"base"}',
        ),
        (["rollback", "--reason", "r"], PROMOTION, 'POST /admin/policies/rollback {"reason":"r"}'),
        (["canary"], CANARY, "GET /admin/policies/canary"),
        (
            ["canary", "0.5"],
            CANARY,
            'POST /admin/policies/canary {"share":0.5,"reason":""}',
        ),
    ],
)
def test_aliases_are_moved(
    run: Run, server: FaultyServer, arguments: list[str], body: dict[str, Any], sent: str
) -> None:
    server.script(answer(200, body))
    status, out, err = run("policies", *arguments)
    assert (status, err) == (0, "")
    assert "p2" in out
    request = server.requests[0]
    assert f"{request.method} {request.target} {request.body.decode()}".strip() == sent
    assert json.loads(run("policies", *arguments, "--json")[1]) == body


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["policies", "canary", "1.5"], "SHARE"),
        (["policies", "evaluate", "p2", "--prompts", "3"], "--prompts"),
        (["policies", "frobnicate"], "No such command"),
        (["cycles", "trigger", "--model-iterations", "-1"], "--model-iterations"),
        (["cycles", "show", ".."], "is no id"),
    ],
)
def test_a_users_error_is_one_line_and_status_2(
    run: Run, server: FaultyServer, arguments: list[str], words: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert words in err
    assert server.requests == []


def test_a_refusal_of_the_service_is_one_line(run: Run, server: FaultyServer) -> None:
    for status in (401, 409):
        server.script(answer(status, problem(status)))
        code, out, err = run("cycles", "list")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "What to do." in err and "top-secret" not in err
