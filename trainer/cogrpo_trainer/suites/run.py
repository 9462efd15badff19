"""One of the published suites from its prompts to its report: `cogrpo evaluate` calls it.

What can be wrong is found before the first picture is made; pictures and scores that are there are
not made again.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cogrpo_core.jobs import Job
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.rewards.load import load_reward
from cogrpo_core.rewards.reward import Reward
from cogrpo_core.rewards.worker_reward import WorkerReward
from cogrpo_trainer.evaluate import (
    EvaluationError,
    Generate,
    Interval,
    Settings,
    prompted,
    stratified,
    wilson,
)
from cogrpo_trainer.suites import (
    DPG,
    GENEVAL,
    HPSV2,
    IMAGE_REWARD,
    dpg,
    geneval,
    hpsv2,
    imagereward,
)
from cogrpo_trainer.suites.detector import Detector, load_detector
from cogrpo_trainer.suites.dpg_questions import Question
from cogrpo_trainer.suites.geneval_rules import Spec
from cogrpo_trainer.suites.pictures import Picture, make, settle
from cogrpo_trainer.suites.report import SuiteReport, interval, print_report
from cogrpo_trainer.suites.scores import by_group, score_by_reward
from cogrpo_trainer.suites.vqa import Blip, load_vqa

SUITES = {IMAGE_REWARD: imagereward, HPSV2: hpsv2, GENEVAL: geneval, DPG: dpg}
PERCENT = 100  # papers give HPSv2's cosine and DPG-Bench's share so

Scorer = Reward | Detector | Blip
Means = tuple[dict[str, Interval], Interval]
"""By style, task or category, and overall."""


@dataclass(frozen=True)
class Request:
    """What the command was told of a published suite."""

    suite: str
    prompts: Path | None
    out: Path | None
    seeds: int | None
    """Pictures of a prompt; None is the suite's own number."""
    seed: int
    batch_size: int
    reward: str | None
    """None is the suite's own."""
    detector: str
    color_model: str
    questions: Path | None
    """DPG-Bench's; None makes pictures for its own scorer."""
    vqa: str
    pictures_only: bool


@dataclass(frozen=True)
class Plan:
    """What a suite asks for."""

    out: Path
    pictures: list[Picture]
    seeds: int
    specs: list[Spec]
    """What GenEval's prompts ask for; empty in the other suites."""
    questions: list[list[Question]]
    """About each of DPG-Bench's prompts; empty where they are not asked."""


def plan(request: Request) -> Plan:
    """Reads the prompts; raises `EvaluationError` and `PromptFileError`."""
    suite = SUITES[request.suite]
    if request.prompts is None:
        raise EvaluationError(f"{request.suite}: give its prompts as --prompts PATH: {suite.WHERE}")
    if request.out is None:
        raise EvaluationError(
            f"{request.suite}: give --out FOLDER for its pictures and scores; a run that was "
            f"stopped goes on there"
        )
    if request.questions is not None and request.suite != DPG:
        raise EvaluationError(f"{request.suite}: --questions is for {DPG}; leave it out")
    each = request.seeds or suite.SAMPLES
    specs = geneval.read(request.prompts) if request.suite == GENEVAL else []
    pictures: list[Picture] = suite.pictures(specs or request.prompts, each, request.seed)
    questions = dpg.questions(request.questions, pictures) if request.questions else []
    return Plan(request.out, pictures, each, specs, questions)


def run(
    request: Request,
    plan: Plan,
    pipe: CoGRPOPipeline,
    settings: Settings,
    *,
    workers: int,
    device: str,
    as_json: bool,
) -> None:
    """Makes what is missing, and prints the report."""
    scorer = _scorer(request, device)
    job = pipe.plan("a prompt", **vars(settings))[0]  # a wrong argument is an error here
    settle(plan.out, _settings(request, plan, pipe, settings, job, device))
    if plan.specs:
        geneval.write_metadata(plan.out, plan.specs)
    generate = _shortening(pipe, prompted(pipe, settings, workers))
    with Progress(console=Console(stderr=True)) as bar:
        row = bar.add_task("pictures", total=len(plan.pictures))
        make(
            plan.out,
            plan.pictures,
            generate,
            batch_size=request.batch_size,
            on_progress=lambda count: bar.advance(row, count),
        )
        if scorer is not None:
            row = bar.add_task("scores", total=len(plan.pictures))
            rows, overall = _score(request, plan, scorer, lambda count: bar.advance(row, count))
    if scorer is None:
        _say_pictures(request, plan, as_json)
        return
    report = SuiteReport(
        request.suite,
        pipe.checkpoint.name,
        pipe.checkpoint.fingerprint,
        _schedule(job),
        job.schedule.num_steps,
        plan.seeds,
        f"{scorer.name} {scorer.version}",
        rows,
        overall,
    )
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        _print(report, scorer.name)


def means(suite: str, pictures: Sequence[Picture], scores: dict[str, float]) -> Means:
    """By style or task, and overall: the plain mean of those, each a stratum."""
    groups = by_group(pictures, scores)
    if suite == IMAGE_REWARD:
        return {}, interval(groups[""])
    mean: Callable[[list[float]], Interval] = wilson if suite == GENEVAL else interval
    rows = {group: mean(values) for group, values in groups.items()}
    return rows, stratified(list(rows.values()))


def _scorer(request: Request, device: str) -> Scorer | None:
    """What scores the suite here; None where only pictures are made."""
    own = {IMAGE_REWARD: imagereward.REWARD, HPSV2: hpsv2.REWARD}.get(request.suite)
    if own is None and request.reward is not None:
        raise EvaluationError(f"{request.suite}: no reward scores it; leave --reward out")
    if request.pictures_only:
        return None
    if own is not None:
        return load_reward(request.reward or own, device)
    if request.suite == GENEVAL:
        return load_detector(request.detector, request.color_model, device)
    return load_vqa(request.vqa, device) if request.questions else None


def _score(request: Request, plan: Plan, scorer: Scorer, advance: Callable[[int], None]) -> Means:
    if isinstance(scorer, Blip):
        yes = dpg.ask(plan.out, plan.questions, plan.pictures, scorer, on_progress=advance)
        return dpg.means(plan.questions, plan.pictures, yes)
    if isinstance(scorer, Detector):
        scores = geneval.score(plan.out, plan.specs, plan.pictures, scorer, on_progress=advance)
        return means(request.suite, plan.pictures, scores)
    try:
        scores = score_by_reward(
            plan.out,
            plan.pictures,
            scorer,
            batch_size=request.batch_size,
            on_progress=advance,
        )
        return means(request.suite, plan.pictures, scores)
    finally:
        if isinstance(scorer, WorkerReward):
            scorer.close()


def _shortening(pipe: CoGRPOPipeline, generate: Generate) -> Generate:
    """Prompts beyond what the text encoder reads are cut, as the reference cuts them."""
    shortened = pipe.checkpoint.text_encoder.shortened
    return lambda texts, seeds: generate([shortened(text) for text in texts], seeds)


def _schedule(job: Job) -> str:
    return "learned" if job.learned else job.schedule.name


def _settings(
    request: Request,
    plan: Plan,
    pipe: CoGRPOPipeline,
    settings: Settings,
    job: Job,
    device: str,
) -> dict[str, Any]:
    """What decides the pictures."""
    defaults = pipe.checkpoint.generation
    guidance = settings.guidance_scale
    asked = list(dict.fromkeys((one.case, one.group, one.prompt) for one in plan.pictures))
    return {
        "suite": request.suite,
        "prompts": hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16],
        "seed": request.seed,
        "seeds": plan.seeds,
        "weights": pipe.checkpoint.fingerprint,
        "dtype": str(next(pipe.checkpoint.transformer.parameters()).dtype),
        "device": device,
        "schedule": _schedule(job),
        "steps": job.schedule.num_steps,
        "guidance_scale": defaults.guidance_scale if guidance is None else guidance,
        "remask_temperature": defaults.remask_temperature,
        "negative_prompt": settings.negative_prompt or "",
        "size": [job.height, job.width],
    }


def _say_pictures(request: Request, plan: Plan, as_json: bool) -> None:
    """Where the pictures lie, for who scores them elsewhere."""
    said: dict[str, Any] = {
        "suite": request.suite,
        "pictures": len(plan.pictures),
        "folder": str(plan.out),
    }
    if request.suite == DPG:
        grids, side = dpg.write_grids(plan.out, plan.pictures)
        said |= {"grids": str(grids), "resolution": side}
    print(json.dumps(said) if as_json else "  ".join(f"{k} {v}" for k, v in said.items()))


def _print(report: SuiteReport, scorer: str) -> None:
    if report.suite == IMAGE_REWARD:
        print_report(report, last=scorer, scale=1, digits=3)
    elif report.suite == HPSV2:
        percent = scorer.startswith("hpsv2")
        scale, digits = (PERCENT, 2) if percent else (1, 3)
        print_report(report, last="Averaged", scale=scale, digits=digits)
    elif report.suite == DPG:
        print_report(report, last="overall", scale=PERCENT, digits=2)
    else:
        print_report(report, last="overall", scale=1, digits=2)
