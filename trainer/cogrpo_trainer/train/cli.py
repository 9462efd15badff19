"""`cogrpo train`; torch and the models are imported when the command runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cogrpo_core.allocator import restart_with_allocator


def train(
    out: Annotated[
        Path | None, typer.Option(help="Folder of states, curves and the result.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Settings to begin with.")] = "shapes",
    config: Annotated[Path | None, typer.Option(help="A TOML file laid over the preset.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="part.key=value, laid over both; may be given again."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings and stop.")
    ] = False,
    prompts_evaluated: Annotated[
        int, typer.Option(min=0, help="Held-out prompts for the gain at the end; 0 for none.")
    ] = 210,
) -> None:
    """Improve a model and its schedule with Co-GRPO, or go on where the run stopped."""
    from cogrpo_trainer.train.config import load_config

    resolved = load_config(preset, config, settings or [])
    if dry_run:
        typer.echo(json.dumps(json.loads(resolved.model_dump_json()), indent=2))
        return
    if out is None:
        raise typer.BadParameter("--out FOLDER is needed: it holds the run's states and result")
    restart_with_allocator()
    from cogrpo_trainer.train.launch import launch

    launch(resolved, out, prompts_evaluated)
