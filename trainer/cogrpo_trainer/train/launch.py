"""From resolved settings to a finished run: rewards, memory plan, progress, result."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeRemainingColumn

from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.rewards.composite import Composite
from cogrpo_core.rewards.load import HELD_OUT, load_reward
from cogrpo_trainer.device import best_device
from cogrpo_trainer.measure import gains, held_out_prompts, mean, measure, scorers
from cogrpo_trainer.train.config import ConfigError, TrainConfig
from cogrpo_trainer.train.distributed import train_distributed
from cogrpo_trainer.train.memory import memory_plan
from cogrpo_trainer.train.monitor import Monitor, summary
from cogrpo_trainer.train.prompts import SHAPES
from cogrpo_trainer.train.run import Iteration, Trainer


def launch(config: TrainConfig, out: Path, prompts_evaluated: int) -> None:
    """Trains, or goes on, then writes `out`/checkpoint and, for the embedded world, the gain."""
    console = Console(stderr=True)
    device = best_device()
    composite = make_composite(config, device)
    if config.workers > 1:
        train_distributed(config, out, partial(make_composite, config, device))
    trainer = Trainer(config, out, composite, device=device)  # goes on from what is there
    trained = sum(value.numel() for value in trainer.trained.parameters().values())
    if trainer.prompts.files is not None:
        console.print(str(trainer.prompts.files))
    console.print(f"{trained:,} trained parameters; memory that this run needs:")
    for line in memory_plan(trainer.checkpoint, config, trained).lines():
        console.print(line)
    monitor = Monitor(trainer, out / "tensorboard")
    columns = (
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        row = bars.add_task("train", total=config.iterations, completed=trainer.iteration, note="")
        trainer.run(lambda done: _show(done, monitor, bars, row))
    monitor.close()
    trainer.export(out / "checkpoint")
    console.print(f"the result lies in {out / 'checkpoint'}")
    if config.prompts == SHAPES and prompts_evaluated:
        report = _gain(trainer, prompts_evaluated)
        (out / "gain.json").write_text(json.dumps(report, indent=1))
        _print_gain(console, report)


def make_composite(config: TrainConfig, device: str = "cpu") -> Composite:
    """The rewards that a run learns from. Raises ValueError for unknown and held-out ones."""
    for name in config.rewards:
        if name in HELD_OUT:
            raise ConfigError(f"rewards: {name} is held out for evaluation; nothing learns from it")
    return Composite(
        [load_reward(name, device=device) for name in config.rewards],
        weights=config.rewards,
        timeout_s=config.reward_timeout_s,
    )


def _show(done: Iteration, monitor: Monitor, bars: Progress, row: TaskID) -> None:
    monitor(done)
    values = summary(done)
    note = ", ".join(
        f"{name.removeprefix('reward/')} {value:.3f}"
        for name, value in values.items()
        if name.startswith("reward/")
    )
    bars.update(row, advance=1, description=done.place.part, note=note)
    if not bars.console.is_terminal:
        place = done.place
        bars.console.print(f"{place.iteration} {place.part}: {note}", soft_wrap=True)


def _gain(trainer: Trainer, number: int) -> dict[str, dict[str, dict[str, float]]]:
    """Base with the default schedule against the result with the learned one, same seeds."""
    config = trainer.config
    prompts = held_out_prompts(number)
    names = dict.fromkeys([*config.rewards, *sorted(HELD_OUT)])
    composite = scorers(names, config.reward_timeout_s, trainer.device)
    steps = config.num_inference_steps
    pipe = CoGRPOPipeline(trainer.checkpoint, samples_per_pass=config.rollout_batch)
    with trainer.trained.swapped(trainer.average.values):
        after = measure(pipe, composite, prompts, schedule="learned", steps=steps)
    base = CoGRPOPipeline.from_pretrained(config.model, device=trainer.device)
    base.samples_per_pass = config.rollout_batch
    before = measure(base, composite, prompts, schedule="meissonic", steps=steps)
    difference = gains(after, before)
    return {
        name: {
            "base": asdict(mean(before[name])),
            "trained": asdict(mean(after[name])),
            "gain": asdict(difference[name]),
        }
        for name in after
    }


def _print_gain(console: Console, report: dict[str, dict[str, dict[str, float]]]) -> None:
    console.print("held-out prompts, same seeds: base -> trained (gain, 95 % interval)")
    for name, row in report.items():
        gain = row["gain"]
        console.print(
            f"  {name}: {row['base']['value']:.3f} -> {row['trained']['value']:.3f} "
            f"({gain['value']:+.3f}, {gain['low']:+.3f} to {gain['high']:+.3f})"
        )
