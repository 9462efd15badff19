"""The model that ships: it is small, whole, and draws what is asked."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.shapes.suites import score, suite

SINGLE = [prompt for prompt in suite("geneval-shapes", 20) if prompt.task == "single_object"]


@pytest.fixture(scope="module")
def pipe() -> CoGRPOPipeline:
    return CoGRPOPipeline.from_pretrained("shapes")


def test_all_weights_together_are_at_most_25_megabytes() -> None:
    folder = Path(str(files("cogrpo_core"))) / "weights" / "shapes"
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= 25_000_000


def test_it_draws_single_objects_of_the_held_out_split(pipe: CoGRPOPipeline) -> None:
    texts = [prompt.text for prompt in SINGLE]
    images = pipe(texts, num_inference_steps=16, seed=list(range(len(texts)))).images
    scores = [
        score(prompt.task, prompt.spec, np.asarray(image))
        for prompt, image in zip(SINGLE, images, strict=True)
    ]
    assert np.mean(scores) >= 0.75, dict(zip(texts, scores, strict=True))


def test_any_prompt_gives_a_picture_and_replays(pipe: CoGRPOPipeline) -> None:
    output = pipe("an old house by the sea", num_inference_steps=6, seed=3)
    assert output.images[0].size == (64, 64)
    assert pipe.verify(output.trajectories[0]).identical


def test_the_improved_model_ships_too() -> None:
    """`shapes-cogrpo`: the same words and codes, other blocks, and a schedule of its own."""
    base, improved = (CoGRPOPipeline.from_pretrained(name) for name in ("shapes", "shapes-cogrpo"))
    made = improved("two red stars", seed=3).trajectories[0]
    assert (made.schedule, len(made.actions)) == ("learned", 3)
    assert improved.checkpoint.fingerprint != base.checkpoint.fingerprint
    for part in ("vqvae", "text_encoder"):
        before, after = (getattr(pipe.checkpoint, part).state_dict() for pipe in (base, improved))
        assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = (pipe.checkpoint.transformer.state_dict() for pipe in (base, improved))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"transformer_blocks", "single_transformer_blocks"}
