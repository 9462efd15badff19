"""`cogrpo cycles`: training cycles of a service, through the SDK."""

from itertools import islice
from typing import Annotated

import typer

from cogrpo_client.admin_cli import (
    SERVER,
    WAIT_SECONDS,
    AdminError,
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
from cogrpo_client.streams import CycleStream
from cogrpo_client.types import Cycle

app = typer.Typer(help="Look at, begin and end training cycles of a service.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="As `cogrpo cycles list` has it.")]
Iterations = Annotated[int | None, typer.Option(min=0, help="The trainer's setting if left out.")]


@app.command("list")
def list_cycles(server: Server = SERVER, limit: Limit = 20, as_json: AsJson = False) -> None:
    """The newest cycles."""
    with service(server) as client:
        cycles = list(islice(client.admin.cycles.list(), limit))
    if as_json:
        echo_json(cycles)
        return
    table(
        ("cycle", "status", "begun", "iteration", "version", "evaluation"),
        (
            (
                cycle.id,
                _state(cycle),
                when(cycle.started),
                f"{cycle.iteration}/{cycle.iterations}" if cycle.iterations else "",
                cycle.policy_version or "",
                verdict(cycle.evaluation),
            )
            for cycle in cycles
        ),
    )


@app.command()
def trigger(
    server: Server = SERVER,
    model_iterations: Iterations = None,
    schedule_iterations: Iterations = None,
    reason: Reason = "",
    wait: Wait = False,
    timeout: Timeout = WAIT_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Begin a cycle; with --wait the status is 2 when it fails or is cancelled."""
    with service(server, job_timeout=timeout) as client:
        run = client.admin.cycles.trigger(
            model_iterations=model_iterations,
            schedule_iterations=schedule_iterations,
            reason=reason,
        )
        cycle = run.record
        if wait:
            with run.events() as events:
                cycle = _follow(events)
    _show(cycle, as_json)
    if wait and cycle.status != "completed":
        why = f": {cycle.error.detail}" if cycle.error else ""
        raise AdminError(f"{cycle.id} {cycle.status}{why}")


@app.command()
def show(id: Id, server: Server = SERVER, as_json: AsJson = False) -> None:
    """One cycle."""
    with service(server) as client:
        cycle = client.admin.cycles.get(id)
    _show(cycle, as_json)


@app.command()
def cancel(id: Id, server: Server = SERVER, as_json: AsJson = False) -> None:
    """End a cycle at its next iteration; one that has ended stays as it is."""
    with service(server) as client:
        cycle = client.admin.cycles.cancel(id)
    _show(cycle, as_json)


def _follow(events: CycleStream) -> Cycle:
    """The ended cycle, with a bar of its iterations until then."""
    with progress_bar() as progress:
        task = progress.add_task("waiting", total=None)
        for cycle in events:
            progress.update(
                task,
                description=_state(cycle),
                completed=cycle.iteration,
                total=cycle.iterations or None,
            )
            if cycle.ended:
                return cycle
    raise AssertionError("a stream of a cycle ends with its end, or an error")


def _state(cycle: Cycle) -> str:
    return f"{cycle.status}, {cycle.phase}" if cycle.phase else cycle.status


def _show(cycle: Cycle, as_json: bool) -> None:
    values = {
        "cycle": cycle.id,
        "status": _state(cycle),
        "reason": cycle.reason,
        "asked for": when(cycle.created),
        "begun": when(cycle.started),
        "ended": when(cycle.finished),
        "iteration": f"{cycle.iteration}/{cycle.iterations}" if cycle.iterations else "",
        "parent": cycle.parent,
        "version": cycle.policy_version or "",
        "promoted": "yes" if cycle.promoted else "no",
        "error": "" if cycle.error is None else cycle.error.detail,
    }
    echo(cycle, values | evaluation_facts(cycle.evaluation), as_json)
