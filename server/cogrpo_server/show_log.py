"""`cogrpo trajectories`: the newest entries of the trajectory log, and whether they replay."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cogrpo_core.exchange.trajectory_log import Entry, connect, read_last
from cogrpo_core.trajectory import TrajectoryError
from cogrpo_server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from cogrpo_core.pipeline import CoGRPOPipeline


@dataclass(frozen=True)
class Line:
    """One entry as it is shown."""

    trajectory_id: str
    request_id: str
    created_at_ms: int = 0
    prompt: str = ""
    seed: int = 0
    size: str = ""
    steps: int = 0
    schedule: str = ""
    model: str = ""
    policy_version: str = ""
    identical: bool | None = None
    """What the replay gave; None without one."""
    error: str | None = None


def redis_url(data_dir: Path) -> str:
    """The Redis of the service that runs in a data folder. Raises `SettingsError`."""
    try:
        return Settings(data_dir=data_dir).redis_url_file.read_text().strip()
    except OSError:
        raise SettingsError(
            f"no service runs in {data_dir}; start one with `cogrpo serve`, name its folder with "
            "--data-dir, or set REDIS_URL"
        ) from None


def show(url: str, last: int, replay_with: str | None, *, as_json: bool) -> bool:
    """Prints the newest entries; False when one cannot be read or did not replay to its tokens."""
    with connect(url) as connection:
        entries = read_last(connection, last)
    good = True
    table = _table(replay=replay_with is not None)
    for line in _lines(entries, replay_with):
        good = good and line.error is None and line.identical is not False
        if as_json:
            print(json.dumps(asdict(line)), flush=True)
        else:
            _add(table, line)
    if not as_json:
        Console().print(table if entries else "the log is empty")
    return good


def _lines(entries: list[Entry], replay_with: str | None) -> Iterator[Line]:
    pipeline = _pipeline(replay_with) if replay_with is not None and entries else None
    for entry in entries:
        yield _line(entry, pipeline)


def _pipeline(model: str) -> "CoGRPOPipeline":
    from cogrpo_core.pipeline import CoGRPOPipeline

    return CoGRPOPipeline.from_pretrained(model)


def _line(entry: Entry, pipeline: "CoGRPOPipeline | None") -> Line:
    from cogrpo_core.inputs import PipelineInputError

    try:
        trajectory = entry.trajectory()
    except TrajectoryError as error:
        return Line(entry.event_id, entry.request_id, error=str(error))
    identical, error_text = None, None
    if pipeline is not None:
        try:
            identical = pipeline.verify(trajectory).identical
        except PipelineInputError as error:
            error_text = str(error)
    return Line(
        trajectory_id=entry.event_id,
        request_id=entry.request_id,
        created_at_ms=trajectory.created_at_ms,
        prompt=trajectory.prompt,
        seed=trajectory.seed,
        size=f"{trajectory.width}x{trajectory.height}",
        steps=trajectory.num_steps,
        schedule=trajectory.schedule,
        model=trajectory.model,
        policy_version=trajectory.policy_version,
        identical=identical,
        error=error_text,
    )


def _table(*, replay: bool) -> Table:
    table = Table()
    columns = ("trajectory", "prompt", "seed", "size", "steps", "schedule", "policy")
    for column in (*columns, "replay") if replay else columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("trajectory", "replay"))
    return table


def _add(table: Table, line: Line) -> None:
    verdict = {True: "identical", False: "DIFFERENT", None: line.error or ""}[line.identical]
    cells = [line.trajectory_id, line.prompt, line.seed, line.size, line.steps, line.schedule]
    texts = [*(str(cell) for cell in cells), line.policy_version, verdict]
    table.add_row(*(_plain(text) for text in texts[: len(table.columns)]))


def _plain(text: str) -> str:
    """Without what a terminal or rich would obey."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("[", "\\[")
