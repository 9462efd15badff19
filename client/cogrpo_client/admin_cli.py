"""What `cogrpo cycles` and `cogrpo policies` share: the service, the errors, tables and progress.

People get tables; with --json each entry is one JSON object on a line of its own.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from cogrpo_client.client import Client
from cogrpo_client.connection import DEFAULT_BASE_URL, JOB_TIMEOUT_SECONDS
from cogrpo_client.errors import APIError
from cogrpo_client.types import Evaluation

WAIT_SECONDS = 24 * 3600.0
_PIPE_WIDTH = 160
"""Of a table that no terminal shows: ids stay whole."""

Server = Annotated[str, typer.Option("--server", metavar="URL", help="The service.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON objects, one a line, for machines.")]
Limit = Annotated[int, typer.Option(min=1, max=500, help="How many, the newest first.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept.")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until it has ended.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")]

SERVER = DEFAULT_BASE_URL


class AdminError(ValueError):
    """What the service refused, or how what was waited for ended, in one line."""


@contextmanager
def service(server: str, job_timeout: float = JOB_TIMEOUT_SECONDS) -> Iterator[Client]:
    """The service at a URL, with the key that the SDK finds. Raises `AdminError`."""
    try:
        with Client(server, job_timeout=job_timeout) as client:
            yield client
    except APIError as error:
        raise AdminError(error.message) from error


def echo_json(entries: Iterable[BaseModel]) -> None:
    """One line for each."""
    for entry in entries:
        typer.echo(entry.model_dump_json())


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under their columns."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    _print(shown)


def facts(values: dict[str, str]) -> None:
    """A name and its value a line; what is empty is left out."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in values.items():
        if value:
            shown.add_row(name, Text(value))
    _print(shown)


def echo(entry: BaseModel, values: dict[str, str], as_json: bool) -> None:
    """One entry: as JSON, or its `values` for people."""
    if as_json:
        echo_json([entry])
    else:
        facts(values)


def when(seconds: int | None) -> str:
    """A Unix time as the local one."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def verdict(evaluation: Evaluation | None) -> str:
    """An evaluation in a few words."""
    if evaluation is None:
        return ""
    if evaluation.passed is None:
        return evaluation.status
    word = "passed" if evaluation.passed else "not passed"
    if evaluation.effect is None or evaluation.interval is None:
        return word
    low, high = evaluation.interval
    return f"{word}, {evaluation.effect:+.4f} ({low:+.4f} to {high:+.4f})"


def evaluation_facts(evaluation: Evaluation | None) -> dict[str, str]:
    """What is shown of an evaluation."""
    if evaluation is None:
        return {}
    return {
        "evaluation": verdict(evaluation),
        "against": evaluation.against,
        "suite": f"{evaluation.suite or 'of the gate'}, {evaluation.prompts or 'its'} prompts",
        "rewards": ", ".join(f"{name} {value:.4f}" for name, value in evaluation.rewards.items()),
        "not passed for": "; ".join(evaluation.reasons),
        "evaluation's error": "" if evaluation.error is None else evaluation.error.detail,
    }


def _print(shown: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    console.print(shown)
