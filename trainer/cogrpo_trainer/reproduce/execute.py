"""Carries out what an item needs: trainings with a checkpoint a cycle, searches, measures.

All of it is resumable: a training goes on from its last state, a finished measure is a file.
"""

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cogrpo_core.pipeline import CoGRPOPipeline, PipelineOutput
from cogrpo_core.rewards.composite import Composite
from cogrpo_core.schedule import ScheduleSpec
from cogrpo_trainer.benchmarks.interleave import timed
from cogrpo_trainer.device import best_device, torch_threads
from cogrpo_trainer.measure import Scores, held_out_prompts, measure, measure_world, scorers
from cogrpo_trainer.reproduce.plan import (
    BASE,
    BEST_CONSTANT,
    BEST_STATIC,
    CYCLES,
    HORIZON,
    RUNS,
    SCHEDULE_ONLY,
    UNTRAINED,
    WORLD,
    Measure,
)
from cogrpo_trainer.reproduce.search import best_constant, best_static
from cogrpo_trainer.train.config import TrainConfig, load_config, merged
from cogrpo_trainer.train.launch import make_composite
from cogrpo_trainer.train.run import Iteration, Trainer

MEASURED = ("shapes-align", "shapes-quality", "shapes-judge")
MEASURE_SEED = 500_000
SAMPLES_PER_PASS = {"cpu": 8, "cuda": 64}
IN_ITS_BATCHES = ("model-only", "joint")
"""Modes that see in batches of the model's phase what both phases see."""
UNUSED = {"model-only": {"schedule_phase"}, "schedule-only": {"model_phase"}}
"""The phase that has no part in a mode."""


@dataclass(frozen=True)
class Budget:
    """How much is spent; smaller ones try the machinery, and say so in their results."""

    prompts: int = 280
    """Held-out prompts of each measure."""
    scale: float = 1.0
    """Of the preset's iterations."""
    search: int = 40
    """Candidates of the search for constants."""
    model: str = "shapes"
    preset: str = "shapes"
    """The settings of `cogrpo train` that all runs begin with."""


class Laboratory:
    """The folder of a reproduction and what was found in it so far."""

    def __init__(
        self, folder: Path, budget: Budget, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.folder = folder
        self.budget = budget
        self.say = say
        self.device = best_device()

    @cached_property
    def composite(self) -> Composite:
        """All rewards, trained on or not."""
        return scorers(MEASURED, 600.0, self.device)

    def pipeline(self, checkpoint: str) -> CoGRPOPipeline:
        """To make many pictures with."""
        pipe = CoGRPOPipeline.from_pretrained(checkpoint, device=self.device)
        pipe.samples_per_pass = SAMPLES_PER_PASS[self.device]
        return pipe

    def saved(self, wanted: Measure) -> Scores | None:
        """The scores of a measure that was made before with the same budget and settings."""
        path = self.measure_file(wanted)
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        made = found["budget"], found.get("settings")
        if made != (asdict(self.budget), self.settings(wanted)):
            return None
        return {name: np.array(values) for name, values in found["scores"].items()}

    def has(self, wanted: Measure) -> bool:
        """Whether a measure was made before."""
        return self.saved(wanted) is not None

    def measure_file(self, wanted: Measure) -> Path:
        """Where a measure is kept."""
        return self.folder / "measures" / f"{wanted.key}.json"

    def scores(self, wanted: Measure) -> Scores:
        """The scores of a measure, from its file or made now."""
        saved = self.saved(wanted)
        if saved is not None:
            return saved
        path = self.measure_file(wanted)
        found = self._measured(wanted)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: np.round(each, 5).tolist() for name, each in found.items()}
        path.write_text(
            json.dumps(
                {
                    "measure": asdict(wanted),
                    "budget": asdict(self.budget),
                    "settings": self.settings(wanted),
                    "commit": commit(),
                    "scores": values,
                }
            )
        )
        return found

    def _measured(self, wanted: Measure) -> Scores:
        prompts = held_out_prompts(self.budget.prompts)
        if wanted.model == WORLD:
            return measure_world(self.composite, prompts, seed=MEASURE_SEED)
        folder, schedule = self.checkpoint(wanted), self.schedule(wanted)
        self.say(f"measuring {wanted.key}")
        return measure(
            self.pipeline(folder),
            self.composite,
            prompts,
            schedule=schedule,
            steps=wanted.steps,
            seed=MEASURE_SEED,
        )

    def settings(self, wanted: Measure) -> str | None:
        """A digest of the settings behind a measure; None where no training has a part in it.

        The search for a static schedule sees as many pictures as the training does.
        """
        if wanted.model in UNTRAINED and wanted.schedule != BEST_STATIC:
            return None
        config = self.config(SCHEDULE_ONLY if wanted.model == BASE else wanted.model, wanted.seed)
        text = config.model_dump_json(exclude=UNUSED.get(config.mode, set()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def checkpoint(self, wanted: Measure) -> str:
        """The checkpoint that a measure is about; trains its run as far as needed."""
        if wanted.model == BASE:
            return self.budget.model
        return str(self.train(wanted.model, wanted.seed, wanted.cycle))

    def schedule(self, wanted: Measure) -> ScheduleSpec:
        """The schedule that a measure is about; searched for where it has to be found."""
        if wanted.schedule not in (BEST_CONSTANT, BEST_STATIC):
            return wanted.schedule
        path = self.folder / "searches" / f"{wanted.schedule}.json"
        settings = self.settings(wanted)
        if not path.exists() or json.loads(path.read_text()).get("settings") != settings:
            self.say(f"searching the {wanted.schedule} schedule")
            pipe, config = self.pipeline(self.budget.model), self.config(SCHEDULE_ONLY, 0)
            if wanted.schedule == BEST_CONSTANT:
                found = best_constant(pipe, self.composite, config, self.budget.search)
            else:
                found = best_static(pipe, self.composite, config)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found | {"settings": settings}, indent=1))
        saved: dict[str, Any] = json.loads(path.read_text())
        return dict(saved["schedule"])

    def config(self, run: str, seed: int) -> TrainConfig:
        """The settings of a run."""
        preset = load_config(self.budget.preset, None, [f"cycles={CYCLES}"]).model_dump(mode="json")
        values = merged(preset, dict(RUNS[run].settings))
        values |= {"seed": seed, "model": self.budget.model, "num_inference_steps": HORIZON}
        config = TrainConfig.model_validate(values)
        phases = {}
        for name in ("model_phase", "schedule_phase"):
            phase = getattr(config, name)
            count = max(1, round(phase.iterations * self.budget.scale))
            phases[name] = phase.model_copy(update={"iterations": count})
        if config.mode in IN_ITS_BATCHES:
            pictures = sum(phase.iterations * phase.batch_size for phase in phases.values())
            model, schedule = phases.values()
            count = max(1, round(pictures / model.batch_size))
            phases = {
                "model_phase": model.model_copy(update={"iterations": count}),
                "schedule_phase": schedule.model_copy(update={"iterations": 0}),
            }
        return config.model_copy(update=phases)

    def train(self, run: str, seed: int, cycle: int) -> Path:
        """The checkpoint of a run after `cycle` cycles."""
        settings = self.settings(Measure(run, seed))
        folder = self.folder / "runs" / f"{run}-s{seed}-{settings}"
        target = folder / f"cycle-{cycle}"
        if (target / "model_index.json").exists():
            return target
        config = self.config(run, seed)
        composite = make_composite(config, self.device)
        trainer = Trainer(config, folder, composite, device=self.device)
        self.say(f"training {run}, seed {seed}, from iteration {trainer.iteration}")
        log = folder / "iterations.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        length = config.iterations // config.cycles

        def watch(done: Iteration) -> None:
            row: dict[str, Any] = {"iteration": done.place.iteration, "part": done.place.part}
            row |= {name: float(np.nanmean(v)) for name, v in done.scores.by_reward.items()}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if trainer.iteration % length == 0:
                trainer.export(folder / f"cycle-{trainer.iteration // length}")
                trainer.save()

        trainer.run(watch, until=cycle * length)
        assert (target / "model_index.json").exists()
        return target

    def seconds(self, wanted: Sequence[Measure], pictures: int = 28) -> list[float]:
        """Median time of one picture on one core, of each: text and policy included, not decoding.

        All are timed in turn, picture by picture and every other time in reverse, so that what else
        the machine does meets all alike; what was timed together stays until settings change.
        """
        path = self.folder / "times.json"
        settings = {each.key: self.settings(each) for each in wanted}
        if path.exists():
            saved = json.loads(path.read_text())
            if saved["settings"] == settings:
                return [float(saved["seconds"][each.key]) for each in wanted]
        folders = {each.key: self.checkpoint(each) for each in wanted}
        pipes = {folder: CoGRPOPipeline.from_pretrained(folder) for folder in set(folders.values())}
        variants = {
            each.key: _pictures(pipes[folders[each.key]], self.schedule(each), each.steps)
            for each in wanted
        }
        with torch_threads(1):
            found = timed(variants, pictures).seconds
        seconds = {key: clocks["wall"] for key, clocks in found.items()}
        path.write_text(json.dumps({"settings": settings, "seconds": seconds}, indent=1))
        return list(seconds.values())


def _pictures(
    pipe: CoGRPOPipeline, schedule: ScheduleSpec, steps: int
) -> Callable[[], PipelineOutput]:
    """Makes the next picture of a few held-out prompts with each call, without decoding it."""
    prompts, seeds = held_out_prompts(7), itertools.count()

    def picture() -> PipelineOutput:
        seed = next(seeds)
        return pipe(
            prompts[seed % len(prompts)].text,
            seed=seed,
            schedule=schedule,
            num_inference_steps=steps,
            output_type="tokens",
        )

    return picture


def commit() -> str:
    """The commit that makes the figures, or `unknown` outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout.strip() or "unknown"


def command_line() -> str:
    """The command as it was typed."""
    return " ".join(["cogrpo", *sys.argv[1:]])
