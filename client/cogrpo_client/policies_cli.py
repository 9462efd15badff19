"""`cogrpo policies`: the versions of a service's model and schedule, through the SDK."""

from itertools import islice
from typing import Annotated

import typer

from cogrpo_client.admin_cli import (
    SERVER,
    WAIT_SECONDS,
    AsJson,
    Limit,
    Reason,
    Server,
    Timeout,
    Wait,
    echo,
    echo_json,
    evaluation_facts,
    service,
    table,
    verdict,
    when,
)
from cogrpo_client.remote import progress_bar
from cogrpo_client.types import Canary, Policy, Promotion

app = typer.Typer(
    help="Look at, test, promote and roll back versions on a service.", no_args_is_help=True
)

Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="As `cogrpo policies list` has it.")
]
Expected = Annotated[
    str | None, typer.Option(help="Who must be champion now; anybody if left out.")
]


@app.command("list")
def list_policies(server: Server = SERVER, limit: Limit = 20, as_json: AsJson = False) -> None:
    """The newest versions."""
    with service(server) as client:
        policies = list(islice(client.admin.policies.list(), limit))
    if as_json:
        echo_json(policies)
        return
    table(
        ("version", "kind", "status", "aliases", "published", "evaluation"),
        (
            (
                policy.version,
                policy.kind,
                policy.status,
                ", ".join(policy.aliases),
                when(policy.created),
                verdict(policy.evaluation),
            )
            for policy in policies
        ),
    )


@app.command()
def show(version: Version, server: Server = SERVER, as_json: AsJson = False) -> None:
    """One version; with --json also its training and evidence."""
    with service(server) as client:
        policy = client.admin.policies.get(version)
    _show(policy, as_json)


@app.command()
def evaluate(
    version: Version,
    server: Server = SERVER,
    against: Annotated[
        str | None, typer.Option(help="Another version, or base; the champion if left out.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Held-out prompts that the trainer has a name for.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=20, max=10_000, help="How many; the gate's if left out.")
    ] = None,
    wait: Wait = False,
    timeout: Timeout = WAIT_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Have the trainer test a version against another; with --wait the result is shown."""
    with service(server, job_timeout=timeout) as client:
        run = client.admin.policies.evaluate(version, against=against, suite=suite, prompts=prompts)
        if wait:
            with progress_bar() as progress:
                progress.add_task("evaluating", total=None)
                run.wait()
            run.refresh()
    _show(run.record, as_json)


@app.command()
def promote(
    version: Version,
    server: Server = SERVER,
    force: Annotated[
        bool, typer.Option("--force", help="Without evidence; it takes a reason.")
    ] = False,
    reason: Reason = "",
    expected: Expected = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion; `base` is the base model."""
    with service(server) as client:
        moved = client.admin.policies.promote(
            version, force=force, reason=reason, expected=expected
        )
    _show_move(moved, as_json)


@app.command()
def rollback(
    server: Server = SERVER,
    reason: Reason = "",
    expected: Expected = None,
    as_json: AsJson = False,
) -> None:
    """Make the former champion the champion again."""
    with service(server) as client:
        moved = client.admin.policies.rollback(reason=reason, expected=expected)
    _show_move(moved, as_json)


@app.command()
def canary(
    share: Annotated[
        float | None,
        typer.Argument(metavar="SHARE", min=0, max=1, help="Of the requests, 0 to 1."),
    ] = None,
    server: Server = SERVER,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """The challenger and its share of the requests; with SHARE, give it this share."""
    with service(server) as client:
        policies = client.admin.policies
        found = policies.canary() if share is None else policies.set_canary(share, reason=reason)
    _show_canary(found, as_json)


def _show(policy: Policy, as_json: bool) -> None:
    judged = policy.judgement
    values = {
        "version": policy.version,
        "kind": policy.kind,
        "status": policy.status,
        "aliases": ", ".join(policy.aliases),
        "published": when(policy.created),
        "parent": policy.parent or "base",
        "on": policy.on or "",
        "sha256": policy.sha256,
        "bytes": str(policy.bytes),
        "judged by": "" if judged is None else f"{judged.caller}, {when(judged.created)}",
        "judged for": "" if judged is None else judged.reason,
    }
    echo(policy, values | evaluation_facts(policy.evaluation), as_json)


def _show_move(moved: Promotion, as_json: bool) -> None:
    values = {
        "champion": moved.version,
        "before": moved.previous,
        "moved": when(moved.created),
        "by": moved.caller,
        "reason": moved.reason,
        "forced": "yes" if moved.forced else "no",
    }
    echo(moved, values, as_json)


def _show_canary(found: Canary, as_json: bool) -> None:
    values = {"challenger": found.challenger or "none", "share": f"{found.share:g}"}
    echo(found, values, as_json)
