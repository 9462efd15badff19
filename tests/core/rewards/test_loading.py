"""Rewards from folders: what is broken is one line, and never opened if it is pickled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")

from cogrpo_core.rewards.clip import (
    ClipConfig,
    TextConfig,
    VisionConfig,
    build_clip,
    load_clip,
    read_tokenizer,
    save_clip,
    text_features,
    tokenize,
    words_of,
)
from cogrpo_core.rewards.load import LOADERS, load_reward
from cogrpo_core.rewards.quality import (
    QualityConfig,
    QualityNet,
    load_quality,
    save_quality,
    style_of,
)
from cogrpo_core.rewards.reward import RewardError
from tests.core.models.folders import (
    Break,
    drop_key,
    edit_json,
    edit_weights,
    keep_bytes,
    pickled,
    poison,
    remove,
    set_key,
)

WEIGHTS = "model.safetensors"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
PROMPTS = ["a red circle", "two blue squares", "anything else, really"]


def tiny_clip(**changes: Any) -> ClipConfig:
    tokenizer = read_tokenizer()
    config = ClipConfig(
        embed_dim=8,
        vision_cfg=VisionConfig(layers=1, width=16, head_width=8, image_size=64, patch_size=32),
        text_cfg=TextConfig(
            context_length=tokenizer.model_max_length,
            vocab_size=len(tokenizer),
            width=16,
            heads=2,
            layers=1,
        ),
        scale=10.0,
        offset=1.0,
        words=words_of(tokenizer),
    )
    return config.model_copy(update=changes)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_clip(tmp_path / "clip", build_clip(tiny_clip()), tiny_clip())
    return tmp_path / "clip"


@pytest.fixture
def quality_folder(tmp_path: Path) -> Path:
    config = QualityConfig(image_size=64, channels=(4, 4, 4, 4, 4), hidden=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_quality(tmp_path / "quality", QualityNet(config), config)
    return tmp_path / "quality"


BROKEN: dict[str, tuple[Break, str]] = {
    "missing key": (edit_weights(WEIGHTS, drop_key("ln_final.bias")), r"1 missing \('ln_final"),
    "unknown key": (
        edit_weights(WEIGHTS, set_key("more", torch.zeros(1))),
        r"1 unknown \('more'\)",
    ),
    "wrong shape": (
        edit_weights(WEIGHTS, set_key("ln_final.bias", torch.zeros(3))),
        r"'ln_final.bias' has shape \(3,\), but config.json says \(16,\)",
    ),
    "not finite": (edit_weights(WEIGHTS, poison("ln_final.bias", float("nan"))), "NaN or infinite"),
    "cut short": (keep_bytes(WEIGHTS, 0.7), "not a whole safetensors file"),
    "pickled": (pickled(WEIGHTS, "model.bin"), "pickled weights such as model.bin are not loaded"),
    "no weights": (remove(WEIGHTS), "the file is missing"),
    "no config": (remove("config.json"), "config.json: the file is missing"),
    "unknown field": (edit_json("config.json", extra=1), "unknown field 'extra'"),
    "other words": (edit_json("config.json", words="0" * 12), "field 'words' is 000000000000"),
    "short text": (
        edit_json(
            "config.json", text_cfg=tiny_clip().text_cfg.model_dump() | {"context_length": 8}
        ),
        "'context_length' is 8, but the tokenizer gives up to 48",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_clip_is_one_line(clip_folder: Path, fault: str):
    apply, words = BROKEN[fault]
    apply(clip_folder)
    with pytest.raises(RewardError, match=words) as error:
        load_clip(clip_folder, "tiny")
    assert "\n" not in str(error.value) and str(clip_folder) in str(error.value)


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (keep_bytes(WEIGHTS, 0.5), "not a whole safetensors file"),
        (edit_weights(WEIGHTS, drop_key("head.0.bias")), "1 missing"),
        (pickled(WEIGHTS, "model.pt"), "model.pt are not loaded"),
        (edit_json("config.json", channels=[4, 4]), "field 'channels"),
        (edit_json("config.json", channels=[4, 4, 4, 4, 6]), "channels .* multiples of 4"),
    ],
)
def test_broken_quality_is_one_line(quality_folder: Path, apply: Callable, words: str):
    apply(quality_folder)
    with pytest.raises(RewardError, match=words) as error:
        load_quality(quality_folder, "tiny")
    assert "\n" not in str(error.value)


def test_unknown_name_lists_the_names():
    with pytest.raises(RewardError, match="unknown reward 'beauty': choose one of shapes-align, "):
        load_reward("beauty")
    assert list(LOADERS) == ["shapes-align", "shapes-quality", "shapes-judge"]


def test_scores_depend_on_no_other_picture_of_the_batch(clip_folder: Path):
    reward = load_clip(clip_folder, "tiny")
    together = reward(IMAGES, PROMPTS)
    alone = [reward(IMAGES[i : i + 1], PROMPTS[i : i + 1])[0] for i in range(3)]
    assert together.shape == (3,) and together.dtype == np.float32
    assert np.allclose(together, alone, atol=1e-4)
    assert np.all(np.abs(together - 1) <= 10 + 1e-4)  # offset + scale * cosine


def test_version_changes_with_the_weights(clip_folder: Path):
    before = load_clip(clip_folder, "tiny").version
    assert before == load_clip(clip_folder, "tiny").version
    edit_weights(WEIGHTS, set_key("ln_final.bias", torch.ones(16)))(clip_folder)
    assert load_clip(clip_folder, "tiny").version != before


def test_text_vectors_are_those_of_open_clip():
    tokenizer = read_tokenizer()
    torch.manual_seed(0)
    model = build_clip(tiny_clip()).eval()
    ids = tokenize(tokenizer, PROMPTS)
    full = torch.full((len(ids), 48), tokenizer.pad_token_id)
    full[:, : ids.shape[1]] = ids
    with torch.no_grad():
        theirs = model.encode_text(full, normalize=True)
        assert torch.allclose(text_features(model, ids), theirs, atol=1e-6)


def test_prompt_longer_than_the_text_tower_is_cut(clip_folder: Path):
    reward = load_clip(clip_folder, "tiny")
    long = "a red circle and " * 40
    scores = reward(IMAGES, [long, long + "a blue square", ""])
    assert np.isfinite(scores).all()
    again = reward(IMAGES[:1], [long + "a blue square"])
    assert np.allclose(again, scores[:1], atol=1e-4)  # what was cut makes no difference


@pytest.mark.parametrize(
    "images",
    [IMAGES[:, :32], IMAGES.astype(np.float32), IMAGES[0], IMAGES[..., :1]],
    ids=["size", "type", "no batch", "gray"],
)
def test_pictures_of_another_kind_are_refused(
    clip_folder: Path, quality_folder: Path, images: np.ndarray
):
    for reward in (load_clip(clip_folder, "a"), load_quality(quality_folder, "b")):
        with pytest.raises(RewardError, match=r"uint8 \[B, 64, 64, 3\]"):
            reward(images, PROMPTS)
        with pytest.raises(RewardError, match="3 pictures for 2 prompts"):
            reward(IMAGES, PROMPTS[:2])


def test_empty_batch_has_no_scores(clip_folder: Path, quality_folder: Path):
    none = np.zeros((0, 64, 64, 3), np.uint8)
    for reward in (load_clip(clip_folder, "a"), load_quality(quality_folder, "b")):
        assert reward(none, []).shape == (0,)


@pytest.mark.parametrize(
    ("prompt", "style"),
    [
        ("a cartoon of a red circle", "cartoon"),
        ("A Striped picture of two stars", "striped"),
        ("there is a ring. the style is shaded.", "shaded"),
        ("a red circle", "flat"),
        ("cartoonish unstriped things", "flat"),
        ("", "flat"),
    ],
)
def test_style_of_a_prompt(prompt: str, style: str):
    assert style_of(prompt) == style
