"""How good the rewards are, on held-out compositions: python -m cogrpo_trainer.benchmarks.rewards.

The figures of docs/rewards.md: hard negatives, damage, and the rank correlation with the checker
over pictures that a model makes.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.rewards.load import LOADERS, load_reward
from cogrpo_core.rewards.quality import style_of
from cogrpo_core.rewards.reward import Reward
from cogrpo_core.shapes.scenes import STYLES
from cogrpo_core.shapes.suites import suite
from cogrpo_trainer.evaluate import check_size
from cogrpo_trainer.pretrain.rewards.damage import DAMAGES
from cogrpo_trainer.pretrain.rewards.measure import (
    FEW_TOKENS,
    MANY_TOKENS,
    Made,
    damage_cases,
    joined,
    make_pictures,
    negative_cases,
    rank_correlation,
    style_cases,
    token_cases,
)
from cogrpo_trainer.pretrain.rewards.negatives import KINDS

Table = dict[str, dict[str, float]]
SETTINGS = ((8, 1.5), (16, 1.5), (16, 2.5), (32, 1.5))  # (steps, guidance scale)


def negatives(rewards: list[Reward], n: int) -> Table:
    """Accuracy of each reward against each kind of hard negative: captions and pictures."""
    table: Table = {}
    for kind in KINDS:
        captions, pictures = negative_cases(kind, n)
        table[kind] = {}
        for reward in rewards:
            table[kind][f"{reward.name}, wrong caption"] = captions.accuracy(reward)
            table[kind][f"{reward.name}, wrong picture"] = pictures.accuracy(reward)
    return table


def damage(rewards: list[Reward], pipe: CoGRPOPipeline, n: int) -> Table:
    """Accuracy of each reward against each kind of damage."""
    cases = {kind: damage_cases(kind, n) for kind in DAMAGES}
    for number in (FEW_TOKENS, MANY_TOKENS):
        cases[f"{number} wrong tokens"] = token_cases(pipe.checkpoint.vqvae, number, n)
    table = {kind: {r.name: case.accuracy(r) for r in rewards} for kind, case in cases.items()}
    asked = style_cases(n)
    table["asked for in another style"] = {
        r.name: asked.accuracy(r) for r in rewards if r.name == "shapes-quality"
    }
    return table


def correlations(rewards: list[Reward], made: Made) -> Table:
    """Spearman's correlation of each reward with what the checker says, with 95 % intervals."""
    texts = [prompt.text for prompt in made.prompts]
    scores = {reward.name: reward(made.images, texts) for reward in rewards}
    aims = {"facts that hold": made.facts, "passed": made.passed, "clean": made.clean}
    aims |= {name: scores[name] for name in scores if name == "shapes-judge"}
    table: Table = {}
    for name, values in scores.items():
        table[name] = {}
        for aim, wanted in aims.items():
            if aim != name:
                value, low, high = rank_correlation(values, wanted)
                table[name] |= {aim: value, f"{aim}, low": low, f"{aim}, high": high}
    return table


def by_style(rewards: list[Reward], made: Made) -> Table:
    """Mean scores of the pictures of each style asked for."""
    texts = [prompt.text for prompt in made.prompts]
    styles = np.array([style_of(text) for text in texts])
    table: Table = {style: {"pictures": float((styles == style).sum())} for style in STYLES}
    for reward in rewards:
        scores = reward(made.images, texts)
        for style in STYLES:
            table[style][reward.name] = float(scores[styles == style].mean())
    for style in STYLES:
        table[style]["clean"] = float(made.clean[styles == style].mean())
    return table


def main(
    model: Annotated[str, typer.Option(help="A folder or `shapes`.")] = "shapes",
    folder: Annotated[
        Path | None, typer.Option(help="Folder of rewards [default: those that ship].")
    ] = None,
    pictures: Annotated[int, typer.Option(min=28, help="That the model makes, about.")] = 308,
    cases: Annotated[int, typer.Option(min=1, help="Of each kind of mistake.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure the rewards: hard negatives, damage, and rank correlation with the checker."""
    torch.set_num_threads(threads)
    start = time.monotonic()
    try:
        rewards = [load_reward(name, folder=folder) for name in LOADERS]
        pipe = CoGRPOPipeline.from_pretrained(model)
        check_size(pipe.checkpoint.generation.height, pipe.checkpoint.generation.width)
    except ValueError as error:
        print(f"rewards: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    report: dict[str, Any] = {
        "model": model,
        "fingerprint": pipe.checkpoint.fingerprint[:12],
        "versions": {reward.name: reward.version for reward in rewards},
        "hard negatives": negatives([r for r in rewards if r.name != "shapes-quality"], cases),
        "damage": damage(rewards, pipe, cases),
    }
    each = max(1, round(pictures / (len(SETTINGS) * 7)))
    prompts = suite("geneval-shapes", each) + suite("long-shapes", each)
    parts = []
    for i, (steps, guidance) in enumerate(SETTINGS):
        parts.append(make_pictures(pipe, prompts, steps, guidance, seed + i * len(prompts)))
        print(f"{steps} steps, guidance {guidance}: {len(prompts)} pictures", file=sys.stderr)
    made = joined(parts)
    report |= {
        "pictures": len(made.images),
        "settings": [list(pair) for pair in SETTINGS],
        "rates": {"passed": float(made.passed.mean()), "clean": float(made.clean.mean())},
        "rank correlation": correlations(rewards, made),
        "by style": by_style(rewards, made),
        "seconds": round(time.monotonic() - start),
    }
    print(json.dumps(report) if as_json else "\n".join(lines(report)))


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text: single values, then a table for each part."""
    plain = [f"{name}: {value}" for name, value in report.items() if not is_table(value)]
    for title, table in report.items():
        if is_table(table):
            plain += ["", title]
            for name, row in table.items():
                values = "  ".join(f"{column} {value:.3f}" for column, value in row.items())
                plain.append(f"  {name}: {values}")
    return plain


def is_table(value: Any) -> bool:
    """Whether a value is rows of named numbers."""
    return isinstance(value, dict) and all(isinstance(row, dict) for row in value.values())


if __name__ == "__main__":
    typer.run(main)
