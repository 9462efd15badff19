"""A tiny checkpoint with random weights, in memory and as a folder, for the tests of the core."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from hypothesis import settings
from transformers import CLIPTextConfig, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from cogrpo_core.models.checkpoint import (
    Checkpoint,
    GenerationDefaults,
    load_checkpoint,
    save_checkpoint,
)
from cogrpo_core.models.config import TransformerConfig
from cogrpo_core.models.schedule_policy import SchedulePolicy, SchedulePolicyConfig
from cogrpo_core.models.text_encoder import TextEncoder
from cogrpo_core.models.transformer import MeissonicTransformer

TEXT_LENGTH = 24

# The same examples in every run.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def _tokenizer() -> CLIPTokenizer:
    """One token a byte."""
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TEXT_LENGTH)


def _text_encoder() -> TextEncoder:
    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return TextEncoder.fresh(config, tokenizer)


TRANSFORMER = TransformerConfig(
    num_layers=1,
    num_single_layers=1,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=24,
    pooled_projection_dim=32,
    axes_dims_rope=(4, 6, 6),
    vocab_size=40,
    codebook_size=32,
    downsample=True,
    upsample=True,
)


def _transformer() -> MeissonicTransformer:
    """Not as fresh: a fresh one's blocks are the identity, so nothing would depend on the text."""
    transformer = MeissonicTransformer(TRANSFORMER)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transformer


def _vqvae() -> VQModel:
    return VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=32,
        norm_num_groups=2,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a folder named `tiny`: 16x16 pixels, 8x8 tokens, 32 codes."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(
            folder,
            transformer=_transformer(),
            vqvae=_vqvae(),
            text_encoder=_text_encoder(),
            generation=GenerationDefaults(
                height=16,
                width=16,
                num_inference_steps=6,
                guidance_scale=3.0,
                sizes=((16, 16), (16, 24)),
            ),
        )
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Checkpoint:
    """The tiny checkpoint, without a scheduling policy."""
    return load_checkpoint(model_folder)


@pytest.fixture(scope="session")
def model_with_fresh_policy(model: Checkpoint) -> Checkpoint:
    """The tiny checkpoint with a scheduling policy that has not learned anything."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = SchedulePolicyConfig.for_width(model.transformer.config.dim)
        return replace(model, schedule_policy=SchedulePolicy(config).eval())


@pytest.fixture(scope="session")
def model_with_policy(model_with_fresh_policy: Checkpoint) -> Checkpoint:
    """The tiny checkpoint with a scheduling policy that reads its features."""
    assert model_with_fresh_policy.schedule_policy is not None
    with torch.random.fork_rng():
        torch.manual_seed(2)
        policy = SchedulePolicy(model_with_fresh_policy.schedule_policy.config).eval()
        torch.nn.init.normal_(policy.last.weight, std=0.2)
        return replace(model_with_fresh_policy, schedule_policy=policy)
