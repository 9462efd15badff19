"""Writes dashboards/cogrpo.json from `ROWS`: a panel is a line. Commit both after a change."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "dashboards" / "cogrpo.json"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS, PANELS_A_ROW, HEIGHT = 24, 3, 8


@dataclass(frozen=True)
class Panel:
    """A time series for each query; `queries` are (PromQL, legend)."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    help: str = ""
    signed: bool = False


def rate(metric: str, by: str = "") -> str:
    """A counter's rate, summed over the processes."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    """Median, 95th and 99th percentile of a histogram, over the processes."""
    buckets = rate(f"{histogram}_bucket", "le")
    return tuple(
        (f"histogram_quantile({share / 100:g}, {buckets})", f"p{share}") for share in (50, 95, 99)
    )


ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        Panel(
            "Requests",
            "reqps",
            (
                (
                    rate('cogrpo_http_requests_total{route!~"/livez|/readyz"}', "status"),
                    "{{status}}",
                ),
            ),
            "By status; none is a caller who left.",
        ),
        Panel("Time to the end of the answer", "s", quantiles("cogrpo_http_request_seconds")),
        Panel(
            "Generations",
            "reqps",
            ((rate("cogrpo_generations_total", "outcome"), "{{outcome}}"),),
            "By outcome: completed, or the code of the error.",
        ),
        Panel("Time in the queue", "s", quantiles("cogrpo_queue_seconds")),
        Panel("Time of inference", "s", quantiles("cogrpo_inference_seconds")),
        Panel("In flight", "short", (("sum(cogrpo_generations_in_flight)", "generations"),)),
    ),
    "Engines": (
        Panel(
            "Pictures and slots",
            "short",
            (
                ("sum(cogrpo_slots)", "slots"),
                ("sum(cogrpo_images_running)", "running"),
                ("sum(cogrpo_images_waiting)", "waiting"),
            ),
        ),
        Panel("Steps by engine", "ops", ((rate("cogrpo_steps_total", "process"), "{{process}}"),)),
        Panel(
            "Mean batch",
            "short",
            ((f"{rate('cogrpo_steps_total')} / {rate('cogrpo_turns_total')}", "pictures"),),
            "Pictures that share a forward pass.",
        ),
        Panel("Pictures", "ops", ((rate("cogrpo_images_total"), "made"),)),
        Panel(
            "Steps given of those asked for",
            "percentunit",
            (
                (
                    f"{rate('cogrpo_steps_used_total')} / {rate('cogrpo_steps_planned_total')}",
                    "share",
                ),
            ),
        ),
        Panel("Cost in the queue", "short", (("sum(cogrpo_queue_cost_steps)", "steps"),)),
        Panel(
            "Models",
            "short",
            (
                (
                    "count by (model, policy_version, fingerprint) (cogrpo_model_info)",
                    "{{model}} {{policy_version}} {{fingerprint}}",
                ),
            ),
            "How many engines serve each.",
        ),
        Panel(
            "Age of the processes", "s", (("time() - process_start_time_seconds", "{{process}}"),)
        ),
    ),
    "Trajectory log": (
        Panel(
            "Trajectories",
            "ops",
            tuple(
                (rate(f"cogrpo_trajectories_{what}_total"), what)
                for what in ("written", "spooled", "erased", "dropped")
            ),
            "Dropped ones are lost for training.",
        ),
        Panel(
            "Waiting",
            "short",
            (
                ("sum(cogrpo_trajectories_waiting)", "in memory"),
                ("sum(cogrpo_trajectories_in_spool)", "in the spools"),
            ),
        ),
        Panel(
            "Redis takes them",
            "bool_yes_no",
            (("min(cogrpo_trajectory_log_up)", "of all engines"),),
        ),
        Panel(
            "Dropped by the shelf",
            "ops",
            ((rate("cogrpo_shelf_dropped_total"), "records and events"),),
            "What other ingresses will not see.",
        ),
    ),
    "Policies and training": (
        Panel(
            "Versions that serve",
            "short",
            (
                (
                    "count by (role, policy_version) (cogrpo_policy_info)",
                    "{{role}} {{policy_version}}",
                ),
            ),
            "How many engines serve each.",
        ),
        Panel(
            "Engines that serve what the registry names",
            "percentunit",
            (("avg(cogrpo_policy_converged)", "share"),),
        ),
        Panel(
            "Swaps",
            "short",
            (("sum by (outcome) (increase(cogrpo_policy_swaps_total[1h]))", "{{outcome}}"),),
            "In the last hour, over the engines: installed, refused, withdrawn.",
        ),
        Panel("Canary's share", "percentunit", (("max(cogrpo_canary_share)", "of the requests"),)),
        Panel(
            "Training cycles",
            "short",
            (
                ("max by (status) (cogrpo_training_cycles)", "{{status}}"),
                ("max(cogrpo_training_promoted)", "promoted"),
            ),
        ),
        Panel(
            "Trainer",
            "percentunit",
            (
                ("max(cogrpo_trainer_up)", "at work"),
                ("max(cogrpo_training_progress)", "of the running cycle"),
            ),
        ),
        Panel(
            "Effect at the gate",
            "none",
            (("max(cogrpo_training_effect)", "of the last challenger"),),
            "The reward's mean difference to the champion.",
            signed=True,
        ),
        Panel(
            "Trajectories read",
            "short",
            (("max by (fate) (cogrpo_training_trajectories)", "{{fate}}"),),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """What Grafana reads."""
    return {
        "uid": "cogrpo",
        "title": "Co-GRPO Serve",
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "panels": [{"id": number, **panel} for number, panel in enumerate(_panels(), start=1)],
    }


def _panels() -> Iterator[dict[str, Any]]:
    """Each row's heading, then its panels, three beside each other."""
    y, width = 0, COLUMNS // PANELS_A_ROW
    for title, panels in ROWS.items():
        yield {
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        y += 1
        for number, panel in enumerate(panels):
            row, column = divmod(number, PANELS_A_ROW)
            place = {"x": column * width, "y": y + row * HEIGHT, "w": width, "h": HEIGHT}
            yield _time_series(panel) | {"gridPos": place}
        y += HEIGHT * -(-len(panels) // PANELS_A_ROW)


def _time_series(panel: Panel) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit} | ({} if panel.signed else {"min": 0}),
            "overrides": [],
        },
        "options": {"tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expr, "legendFormat": legend}
            for i, (expr, legend) in enumerate(panel.queries)
        ],
    }


def text() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
