"""`python -m demo`, or `make demo`: plays the story and writes the report."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cogrpo_client import APIError
from cogrpo_server.bench.summary import BenchError
from cogrpo_trainer.measure import held_out_prompts
from demo.report import write_report
from demo.results import results_of
from demo.story import GATE_PROMPTS, DemoError, play


def main(
    report: Annotated[Path, typer.Option(help="The page to write.")] = Path("demo/report.md"),
    prompts: Annotated[int, typer.Option(min=7, help="Held-out prompts to measure.")] = 140,
    data_dir: Annotated[Path | None, typer.Option(help="To keep logs and records.")] = None,
) -> None:
    """Train the embedded model on the traffic of simulated users, and show what came of it."""
    console = Console(stderr=True)
    seen = {prompt.text for prompt in held_out_prompts(GATE_PROMPTS)}
    held_out = [p for p in held_out_prompts(GATE_PROMPTS + prompts) if p.text not in seen]
    try:
        with tempfile.TemporaryDirectory(prefix="cogrpo-demo-") as folder:
            texts = [prompt.text for prompt in held_out]
            story = play((data_dir or Path(folder) / "data").resolve(), texts, console.print)
    except (DemoError, BenchError, APIError) as error:
        console.print(f"demo: {error}")
        raise typer.Exit(1) from None
    assert story.cycle is not None and story.cycle.evaluation is not None
    if not story.cycle.promoted:
        console.print(f"demo: not promoted: {'; '.join(story.cycle.evaluation.reasons)}")
        raise typer.Exit(1)
    report.parent.mkdir(parents=True, exist_ok=True)
    write_report(story, results_of(story, held_out), report, "make demo")
    console.print(str(report))


if __name__ == "__main__":
    typer.run(main)
