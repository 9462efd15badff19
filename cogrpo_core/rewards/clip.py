"""Rewards from a CLIP: how near a picture and its prompt lie in the model's space.

The model is open_clip's; the text is cut into the embedded world's own words, not open_clip's.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from open_clip import CLIP
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from cogrpo_core.models.config import FolderConfig, Size
from cogrpo_core.models.hub import EMBEDDED_FOLDER
from cogrpo_core.models.weights import (
    CheckpointError,
    load_module,
    one_line,
    read_config,
    save_module,
)
from cogrpo_core.rewards.files import WEIGHTS_FILE, file_version
from cogrpo_core.rewards.reward import Images, RewardError, Scores, check_batch, to_input

TOKENIZER = EMBEDDED_FOLDER / "shapes" / "tokenizer"
CHUNK = 64  # pictures of one forward pass
Layers = Annotated[int, Field(gt=0, le=64, strict=True)]


class VisionConfig(FolderConfig):
    """open_clip's `vision_cfg`: a transformer over patches, or with four `layers` a ResNet."""

    layers: Layers | tuple[Layers, Layers, Layers, Layers]
    width: Size
    head_width: Size
    image_size: Size
    patch_size: Size = 16


class TextConfig(FolderConfig):
    """open_clip's `text_cfg`."""

    context_length: Size
    vocab_size: Size
    width: Size
    heads: Layers
    layers: Layers


class ClipConfig(FolderConfig):
    """`config.json`: open_clip's own fields, what makes a score of a cosine, and the words."""

    embed_dim: Size
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    scale: float = 1.0
    offset: float = 0.0
    words: str
    """`words_of` the tokenizer: another one's numbers would mean nothing."""


class ClipReward:
    """`scale` * cosine + `offset` of a picture and its prompt.

    A prompt longer than the text tower reads is cut, as CLIP's are.
    """

    def __init__(
        self, name: str, version: str, model: CLIP, config: ClipConfig, tokenizer: CLIPTokenizer
    ) -> None:
        self.name = name
        self.version = version
        self.model = model.eval()
        self.config = config
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Scores:
        """The scores [B]; raises `RewardError` for pictures of another size or type."""
        check_batch(images, prompts, self.config.vision_cfg.image_size)
        device = self.model.logit_scale.device
        scores = np.empty(len(images), np.float32)
        for start in range(0, len(images), CHUNK):
            rows = slice(start, start + CHUNK)
            ids = tokenize(self.tokenizer, list(prompts[rows])).to(device)
            seen = image_features(self.model, to_input(images[rows]).to(device))
            said = text_features(self.model, ids)
            cosine = (seen * said).sum(dim=1)
            scores[rows] = (cosine * self.config.scale + self.config.offset).cpu().numpy()
        return scores


def build_clip(config: ClipConfig) -> CLIP:
    """An untrained open_clip model."""
    return CLIP(
        config.embed_dim,
        config.vision_cfg.model_dump(),
        config.text_cfg.model_dump(),
    )


def image_features(model: CLIP, pixels: Tensor) -> Tensor:
    """Unit vectors [B, E] of pictures [B, 3, H, W]."""
    return F.normalize(model.visual(pixels), dim=-1)


def text_features(model: CLIP, ids: Tensor) -> Tensor:
    """Unit vectors [B, E] of ids [B, L], each with its end token, L up to the model's length.

    open_clip's own `encode_text` takes the full length only. The mask is causal and the vector is
    read at the first end token, so that what comes after it makes no difference.
    """
    length = ids.shape[1]
    states = model.token_embedding(ids) + model.positional_embedding[:length]
    states = model.ln_final(model.transformer(states, attn_mask=model.attn_mask[:length, :length]))
    ends = states[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
    return F.normalize(ends @ model.text_projection, dim=-1)


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Ids [B, L] (int64), padded to the longest and cut to the tokenizer's greatest length."""
    encoded = tokenizer(
        prompts,
        padding="longest",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    ids: Tensor = encoded["input_ids"]
    return ids


def read_tokenizer(folder: Path = TOKENIZER) -> CLIPTokenizer:
    """The embedded world's tokenizer. Raises `RewardError`."""
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise RewardError(f"{folder}: no CLIP tokenizer ({one_line(error)})") from None


def words_of(tokenizer: CLIPTokenizer) -> str:
    """A short hash of the vocabulary."""
    words = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def load_clip(folder: Path, name: str, device: torch.device | str = "cpu") -> ClipReward:
    """The reward in a folder of config.json and model.safetensors. Raises `RewardError`."""
    try:
        config = read_config(folder / "config.json", ClipConfig)
        tokenizer = read_tokenizer()
        _check_words(folder, config, tokenizer)
        model = build_clip(config)
        load_module(model, folder / WEIGHTS_FILE, dtype=torch.float32, device=device)
    except CheckpointError as error:
        raise RewardError(str(error)) from None
    return ClipReward(name, file_version(folder), model, config, tokenizer)


def save_clip(folder: Path, model: CLIP, config: ClipConfig) -> None:
    """Writes the folder that `load_clip` reads, weights in float16."""
    values: dict[str, Any] = config.model_dump(mode="json")
    save_module(model, folder / WEIGHTS_FILE, config=values, dtype=torch.float16)


def _check_words(folder: Path, config: ClipConfig, tokenizer: CLIPTokenizer) -> None:
    found, text = words_of(tokenizer), config.text_cfg
    if found != config.words or text.vocab_size < len(tokenizer):
        raise RewardError(
            f"{folder / 'config.json'}: field 'words' is {config.words}, but the embedded "
            f"tokenizer's is {found}; train the rewards again"
        )
    if text.context_length < tokenizer.model_max_length:
        raise RewardError(
            f"{folder / 'config.json'}: field 'context_length' is {text.context_length}, but the "
            f"tokenizer gives up to {tokenizer.model_max_length} tokens"
        )
