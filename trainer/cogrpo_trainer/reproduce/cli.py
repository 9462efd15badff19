"""`cogrpo reproduce`; torch and the models are imported when the command runs."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from cogrpo_core.allocator import restart_with_allocator
from cogrpo_trainer.reproduce.plan import ITEMS, comparable, known, limited

ALL = "all"


class ReproduceError(ValueError):
    """An item that does not exist."""


def reproduce(
    name: Annotated[str, typer.Argument(help=f"{', '.join(ITEMS)}, or all.")],
    out: Annotated[Path, typer.Option(help="Folder of runs and measures; resumable.")] = Path(
        "runs/reproduce"
    ),
    model: Annotated[str, typer.Option(help="The base model.")] = "shapes",
    preset: Annotated[
        str, typer.Option(help="Of `cogrpo train`: what all runs begin with.")
    ] = "shapes",
    prompts: Annotated[int, typer.Option(min=7, help="Held-out prompts of a measure.")] = 280,
    seeds: Annotated[int, typer.Option(min=1, help="At most so many of each run.")] = 3,
    scale: Annotated[
        float, typer.Option(min=0.01, max=10, help="Of the iterations; below 1 to try it.")
    ] = 1.0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings and measures at a time; cores by default.")
    ] = None,
    measured: Annotated[
        bool, typer.Option("--measured", help="Train nothing: items with a seed of each row.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Also render the page there, plots in images/ beside it.")
    ] = None,
) -> None:
    """Train, measure and tabulate the paper's tables and figures on the embedded world."""
    restart_with_allocator()
    if name != ALL and name not in ITEMS:
        raise ReproduceError(f"unknown item {name!r}: choose one of {', '.join(ITEMS)}, or {ALL}")
    from dataclasses import asdict

    from rich.console import Console

    from cogrpo_trainer.measure import held_out_prompts
    from cogrpo_trainer.reproduce.claims import tested
    from cogrpo_trainer.reproduce.execute import Budget, Laboratory, command_line, commit
    from cogrpo_trainer.reproduce.page import write_page
    from cogrpo_trainer.reproduce.parallel import prepare
    from cogrpo_trainer.reproduce.tables import rows_of

    console = Console(stderr=True)
    budget = Budget(prompts=prompts, scale=scale, model=model, preset=preset)
    items = {n: comparable(limited(ITEMS[n], seeds)) for n in (ITEMS if name == ALL else [name])}
    laboratory = Laboratory(out, budget, say=console.print)
    if measured:
        for n, item in list(items.items()):
            items[n] = comparable(known(item, laboratory.has))
            if items[n].rows.keys() != item.rows.keys():
                del items[n]
                (out / "results" / f"{n}.json").unlink(missing_ok=True)
    else:
        prepare(out, budget, items.values(), jobs or os.cpu_count() or 1, console.print)
    for chosen, item in items.items():
        result = {
            "item": chosen,
            "title": item.title,
            "prompts": prompts,
            "seeds": seeds,
            "budget": asdict(budget),
            "command": command_line(),
            "commit": commit(),
            "rows": rows_of(item, laboratory.scores, held_out_prompts(prompts)),
        }
        if chosen == "table-5b":
            timed = laboratory.seconds([measures[0] for measures in item.rows.values()])
            result["seconds"] = dict(zip(item.rows, timed, strict=True))
        (out / "results").mkdir(parents=True, exist_ok=True)
        (out / "results" / f"{chosen}.json").write_text(json.dumps(result, indent=1))
        console.print(f"{chosen}: {out / 'results' / f'{chosen}.json'}")
    checked = tested(laboratory.saved, held_out_prompts(prompts))
    (out / "claims.json").write_text(json.dumps(checked, indent=1))
    if page is not None:
        found = {path.stem: json.loads(path.read_text()) for path in (out / "results").glob("*")}
        write_page(found, checked, page, page.parent / "images")
