"""`cogrpo evaluate`; torch and the models are imported when the command runs."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogrpo_core.cli import device_of, torch_type

if TYPE_CHECKING:
    from cogrpo_trainer.evaluate import Report


def evaluate(
    suite: Annotated[
        str,
        typer.Option(
            help="Of the embedded world: geneval-shapes or long-shapes. Published, with --prompts "
            "and --out: imagereward, hpsv2, geneval or dpg."
        ),
    ] = "geneval-shapes",
    model: Annotated[
        str, typer.Option(help="A checkpoint: an embedded name, a folder or a Hub id.")
    ] = "shapes",
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps, 1 to 256 [default: the model's].")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="learned, meissonic, paper-table-1 or cosine-power[:GAMMA] [default: the model's]."
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance of the preset [default: the model's].")
    ] = None,
    remask_temperature: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="The preset's, to start [default: the model's]."),
    ] = None,
    n_per_task: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Prompts of a task, embedded [default: 60]."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of prompt 0; the next ones count up.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, max=64, help="Pictures of a batch.")] = 16,
    images: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="A folder for every picture, as PNG, embedded."),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="A PNG file for 64 captioned pictures, embedded."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File or folder of a published suite's prompts.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder of a published suite's pictures and scores; a stopped run goes on there.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Pictures of a prompt, published [default: 1 or 4]."),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="Scores imagereward or hpsv2 [default: image-reward or hpsv2]."),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the pictures of a published suite should not show.")
    ] = None,
    detector: Annotated[
        str, typer.Option(help="Mask2Former of geneval: a folder, or a Hub id that was fetched.")
    ] = "facebook/mask2former-swin-small-coco-instance",
    color_model: Annotated[
        str, typer.Option(help="open_clip model of geneval: a folder, or a fetched Hub id.")
    ] = "timm/vit_large_patch14_clip_224.openai",
    questions: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="dpg's dpg_bench.csv: score it here, by --vqa."),
    ] = None,
    vqa: Annotated[
        str, typer.Option(help="BLIP that answers --questions: a folder, or a fetched Hub id.")
    ] = "Salesforce/blip-vqa-base",
    pictures_only: Annotated[
        bool, typer.Option("--pictures-only", help="Make a published suite's pictures, no scores.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; the GPU if there is one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16 to compute in.")] = "float32",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Score the model on a suite's held-out prompts, with 95 % intervals."""
    from rich.console import Console
    from rich.progress import Progress

    from cogrpo_core.shapes.suites import PROMPTS_PER_TASK, SUITES
    from cogrpo_core.shapes.suites import suite as prompts_of
    from cogrpo_trainer.suites import PUBLISHED

    if suite in PUBLISHED:
        if n_per_task or images or grid:
            raise typer.BadParameter(f"--n-per-task, --images and --grid are not for {suite}")
        from cogrpo_trainer.evaluate import Settings, load_pipeline
        from cogrpo_trainer.suites.run import Request, plan, run

        request = Request(
            suite=suite,
            prompts=prompts,
            out=out,
            seeds=seeds,
            seed=seed,
            batch_size=batch_size,
            reward=reward,
            detector=detector,
            color_model=color_model,
            questions=questions,
            vqa=vqa,
            pictures_only=pictures_only,
        )
        planned = plan(request)
        place = device_of(device)
        run(
            request,
            planned,
            load_pipeline(
                model, device=place, remask_temperature=remask_temperature, dtype=torch_type(dtype)
            ),
            Settings(steps, schedule, guidance_scale, negative_prompt),
            workers=_cores() if place == "cpu" else 1,
            device=place,
            as_json=as_json,
        )
        return
    if suite not in SUITES:
        known = ", ".join([*SUITES, *PUBLISHED])
        raise typer.BadParameter(f"unknown suite {suite!r}: choose one of {known}")
    if prompts or out or seeds or reward or negative_prompt or questions or pictures_only:
        raise typer.BadParameter(
            f"--prompts, --out, --seeds, --reward, --negative-prompt, --questions and "
            f"--pictures-only are not for {suite}"
        )
    held_out = prompts_of(suite, n_per_task or PROMPTS_PER_TASK)
    _folders(images, grid and grid.parent)
    from cogrpo_trainer.evaluate import (
        Report,
        Settings,
        check_size,
        load_pipeline,
        prompted,
        run_suite,
        save_images,
        summarize,
    )
    from cogrpo_trainer.grid import save_grid

    place = device_of(device)
    pipe = load_pipeline(
        model, device=place, remask_temperature=remask_temperature, dtype=torch_type(dtype)
    )
    settings = Settings(steps, schedule, guidance_scale)
    job = pipe.plan(held_out[0].text, **vars(settings))[0]  # a wrong argument is an error here
    check_size(job.height, job.width)
    with Progress(console=Console(stderr=True)) as bar:
        row = bar.add_task("pictures", total=len(held_out))
        samples = run_suite(
            held_out,
            prompted(pipe, settings, workers=_cores() if place == "cpu" else 1),
            seed=seed,
            batch_size=batch_size,
            on_progress=lambda made: bar.advance(row, made),
        )
    if images is not None:
        save_images(samples, images)
    if grid is not None:
        save_grid(samples, grid)
    name = "learned" if job.learned else job.schedule.name
    report = Report(suite, job.schedule.num_steps, name, model, *summarize(samples))
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        _print_table(report)


def _folders(*folders: Path | None) -> None:
    """Makes the folders before any work is done."""
    for folder in folders:
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                message = f"no folder can be made at {folder}: {error.strerror}"
                raise typer.BadParameter(message) from None


def _cores() -> int:
    """The cores that torch would use; OMP_NUM_THREADS and the process's affinity bound them."""
    import torch

    return torch.get_num_threads()


def _print_table(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{report.suite}: {report.model}, {report.schedule}, {report.steps} steps"
    table = Table("task", title=title)
    for heading in ("score", "95 % interval", "n"):
        table.add_column(heading, justify="right")
    rows = list(report.tasks.items())
    for name, row in [*rows, ("overall", report.overall)]:
        if name == "overall":
            table.add_section()
        cells = f"{row.score:.3f}", f"{row.low:.3f} to {row.high:.3f}", str(row.n)
        table.add_row(name.replace("_", " "), *cells)
    Console(file=sys.stdout).print(table)
