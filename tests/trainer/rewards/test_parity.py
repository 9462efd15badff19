"""Our scores against the packages' own, at full size and random weights: `make test-rewards`.

Each package has an environment of its own below `COGRPO_TEST_ENVS`, made from a lock file.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cogrpo_core.rewards.convert import convert
from cogrpo_core.rewards.hps import empty_model
from cogrpo_core.rewards.load import SCORERS, load_reward
from cogrpo_core.rewards.published import VIT_H_14, Architecture
from cogrpo_core.rewards.reward import RewardError
from cogrpo_core.rewards.worker_reward import WorkerReward
from cogrpo_trainer.rewards.install import LOCKS, install

open_clip = pytest.importorskip("open_clip")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SMALL = VIT_H_14.model_copy(
    update={
        "vision_cfg": VIT_H_14.vision_cfg.model_copy(update={"layers": 2, "width": 160}),
        "text_cfg": VIT_H_14.text_cfg.model_copy(update={"layers": 2, "width": 128, "heads": 2}),
    }
)
HERE = Path(__file__).parent
ENVS = Path(os.environ.get("COGRPO_TEST_ENVS", ".venv-rewards")).resolve()
SHAPES = [(224, 224), (300, 180), (160, 400), (512, 512), (97, 225), (230, 100)]
"""The square alone has a longer side of 224: others of that side hpsv2's package does not pad."""
PROMPTS = [
    "a red circle",
    "the picture of a blue house, very long ago",
    "",
    "a very long prompt of the sea " * 60,
    "Ünïcode 🙂 and 12 digits's",
    "the red house; the blue sea",
]


def packages_python(name: str, lock: Path) -> str:
    install(lock, ENVS / name)
    return str(ENVS / name / "bin" / "python")


def ask(python: str, *arguments: object) -> str:
    command = [python, "-I", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Numbered files of every shape: coarse patterns with some noise, and the prompts."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number, (height, width) in enumerate(SHAPES):
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.integers(-20, 21, (height, width, 3))
        pixels = (np.asarray(image).astype(int) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    return folder


def ours(reward, pictures: Path) -> list[float]:
    images = [np.asarray(Image.open(pictures / f"{i}.png")) for i in range(len(SHAPES))]
    return [float(reward(one[None], [text])[0]) for one, text in zip(images, PROMPTS)]


def compare(name: str, found: list[float], expected: list[float]) -> None:
    gap = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    print(f"{name}: theirs {min(expected):.5f} to {max(expected):.5f}, largest gap {gap:.2e}")
    assert max(expected) - min(expected) > 10 * 1e-3  # random weights that tell pictures apart
    assert gap < 1e-3


def random_weights(architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Of a CLIP, in float16."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in empty_model(architecture).state_dict().items():
        fan = value.shape[-1] if value.ndim > 1 else 25
        noise = torch.randn(value.shape, generator=generator) * fan**-0.5
        scale = "ln_" in name and name.endswith("weight")
        weights[name] = (noise + 1 if scale else noise).half()
    return weights


@pytest.mark.parametrize("architecture", [SMALL, VIT_H_14], ids=["small", "full"])
@pytest.mark.parametrize("name", ["hpsv2", "hpsv2.1"])
def test_hpsv2(
    name: Literal["hpsv2", "hpsv2.1"], architecture: Architecture, pictures: Path, tmp_path: Path
) -> None:
    """Stored as float16, so that the package, which holds file and model at once, stays small."""
    python = packages_python("hpsv2", HERE.parents[1] / "data" / "locks" / "hpsv2.txt")
    seed = ["hpsv2", "hpsv2.1"].index(name)
    checkpoint = tmp_path / "HPS.pt"
    torch.save({"state_dict": random_weights(architecture, seed)}, checkpoint)
    words = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    expected = json.loads(
        ask(
            python,
            HERE / "oracle_hpsv2.py",
            checkpoint,
            pictures,
            words,
            architecture.model_dump_json(),
        )
    )
    convert(name, checkpoint, tmp_path / "rewards" / name, architecture)
    checkpoint.unlink()
    reward = load_reward(name, folder=tmp_path / "rewards")
    compare(name, ours(reward, pictures), expected)


def test_image_reward(pictures: Path, tmp_path: Path) -> None:
    python = packages_python("image-reward", LOCKS / "image-reward.txt")
    folder = tmp_path / "image-reward"
    folder.mkdir()
    ask(python, HERE / "oracle_image_reward.py", "make", folder)
    script = HERE / "oracle_image_reward.py"
    expected = json.loads(ask(python, script, "score", folder, pictures))
    convert("image-reward", folder / "ImageReward.pt", folder)
    reward = WorkerReward("image-reward", Path(python), SCORERS / "image_reward.py", folder)
    assert reward.health()["version"] == reward.version != ""
    compare("image-reward", ours(reward, pictures), expected)
    batch = np.stack([np.asarray(Image.open(pictures / "0.png"))] * 2)
    twice = reward(batch, [PROMPTS[0]] * 2)
    np.testing.assert_allclose(twice, expected[0], atol=1e-3)
    reward.close()
    weights = load_file(folder / "model.safetensors")
    value = weights.pop("mlp.layers.0.bias")
    for change in ({}, {"mlp.layers.0.bias": value, "surplus": torch.ones(1)}):
        save_file(weights | change, folder / "model.safetensors")
        with pytest.raises(RewardError, match="keys do not match ImageReward"):
            WorkerReward("image-reward", Path(python), SCORERS / "image_reward.py", folder)
