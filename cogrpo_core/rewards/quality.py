"""`shapes-quality`: how clean a picture is, in the style that its prompt asks for.

A small convolutional network with one score for each of the four styles; training makes it a
preference (Bradley-Terry) for clean pictures over spoiled ones, as HPS is one of people
(arXiv 2306.09341).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from cogrpo_core.models.config import FolderConfig, Size
from cogrpo_core.models.weights import CheckpointError, load_module, read_config, save_module
from cogrpo_core.rewards.files import WEIGHTS_FILE, file_version
from cogrpo_core.rewards.reward import Images, RewardError, Scores, check_batch, to_input
from cogrpo_core.shapes.scenes import STYLES

CHUNK = 64  # pictures of one forward pass
GROUPS = 4  # of the norms
_STYLE_WORD = re.compile("|".join(rf"\b{style}\b" for style in STYLES))


def style_of(prompt: str) -> str:
    """The style that a prompt of the world asks for: the first of the four it names, else flat."""
    found = _STYLE_WORD.search(prompt.lower())
    return found.group() if found else STYLES[0]


def style_numbers(prompts: Sequence[str]) -> Tensor:
    """The prompts' styles as indices of `STYLES`, int64 [B]."""
    return torch.tensor([STYLES.index(style_of(prompt)) for prompt in prompts], dtype=torch.long)


class QualityConfig(FolderConfig):
    """`config.json`: the channels of the five convolutions."""

    image_size: Size
    channels: tuple[Size, Size, Size, Size, Size]
    hidden: Size
    scale: float = 1.0
    offset: float = 0.0

    @model_validator(mode="after")
    def _channels_are_groups(self) -> Self:
        if any(width % GROUPS for width in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of {GROUPS}")
        return self


class QualityNet(nn.Module):
    """Pictures to four scores: five convolutions, mean and maximum over the picture, two layers.

    The mean sees how much is spoiled, the maximum that anything is.
    """

    def __init__(self, config: QualityConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, stride in zip(config.channels, (2, 2, 1, 2, 1), strict=True):
            layers += [
                nn.Conv2d(before, width, 3, stride, 1, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.GELU(),
            ]
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(2 * before, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, len(STYLES)),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1] -> the scores [B, 4], one a style."""
        states = self.body(pixels)
        pooled = torch.cat([states.mean(dim=(2, 3)), states.amax(dim=(2, 3))], dim=1)
        scores: Tensor = self.head(pooled)
        return scores


class QualityReward:
    """The network's score for the style of the prompt; nothing else of the prompt is read."""

    def __init__(self, name: str, version: str, model: QualityNet, config: QualityConfig) -> None:
        self.name = name
        self.version = version
        self.model = model.eval()
        self.config = config

    @torch.inference_mode()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Scores:
        """The scores [B]; raises `RewardError` for pictures of another size or type."""
        check_batch(images, prompts, self.config.image_size)
        device = next(self.model.parameters()).device
        scores = np.empty(len(images), np.float32)
        for start in range(0, len(images), CHUNK):
            rows = slice(start, start + CHUNK)
            four = self.model(to_input(images[rows]).to(device))
            style = style_numbers(prompts[rows]).to(device)
            own = four.gather(1, style[:, None]).squeeze(1)
            scores[rows] = (own * self.config.scale + self.config.offset).cpu().numpy()
        return scores


def load_quality(folder: Path, name: str, device: torch.device | str = "cpu") -> QualityReward:
    """The reward in a folder of config.json and model.safetensors. Raises `RewardError`."""
    try:
        config = read_config(folder / "config.json", QualityConfig)
        model = QualityNet(config)
        load_module(model, folder / WEIGHTS_FILE, dtype=torch.float32, device=device)
    except CheckpointError as error:
        raise RewardError(str(error)) from None
    return QualityReward(name, file_version(folder), model, config)


def save_quality(folder: Path, model: QualityNet, config: QualityConfig) -> None:
    """Writes the folder that `load_quality` reads, weights in float16."""
    values = config.model_dump(mode="json")
    save_module(model, folder / WEIGHTS_FILE, config=values, dtype=torch.float16)
