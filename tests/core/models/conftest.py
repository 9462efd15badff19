"""A whole tiny checkpoint: the golden transformer and VQ model, with a text encoder that fits."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTokenizer

from cogrpo_core.models.checkpoint import GenerationDefaults, save_checkpoint
from cogrpo_core.models.schedule_policy import SchedulePolicy, SchedulePolicyConfig
from cogrpo_core.models.text_encoder import TextEncoder
from cogrpo_core.models.transformer import MeissonicTransformer
from cogrpo_core.models.vqvae import load_vqvae

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_text_encoder(hidden: int, projection: int) -> TextEncoder:
    """Random weights, 12 positions, a vocabulary of letters."""
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{x}</w>" for x in LETTERS)]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=[], model_max_length=12
    )
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    return TextEncoder.fresh(config, tokenizer).eval()


@pytest.fixture
def text_encoder() -> TextEncoder:
    """One that fits the golden model `meissonic-tiny`."""
    return make_text_encoder(hidden=40, projection=48)


@pytest.fixture(scope="session")
def _checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(1)
    save_checkpoint(
        folder,
        transformer=MeissonicTransformer.from_pretrained(GOLDEN / "meissonic-tiny" / "transformer"),
        vqvae=load_vqvae(GOLDEN / "meissonic-tiny" / "vqvae"),
        text_encoder=make_text_encoder(hidden=40, projection=48),
        schedule_policy=SchedulePolicy(SchedulePolicyConfig.for_width(48)),
        generation=GenerationDefaults(height=64, width=64, num_inference_steps=8),
    )
    return folder


@pytest.fixture
def checkpoint_folder(_checkpoint: Path, tmp_path: Path) -> Path:
    """A fresh copy, to be read or broken."""
    return Path(shutil.copytree(_checkpoint, tmp_path / "checkpoint"))
