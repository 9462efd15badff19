"""The VQ model of a checkpoint folder: a diffusers.VQModel, read and written by weights.py."""

from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from diffusers import VQModel
from pydantic import Field, model_validator

from cogrpo_core.models.config import Flag, FolderConfig, Size
from cogrpo_core.models.weights import (
    CheckpointError,
    load_module,
    one_line,
    read_config,
    save_module,
)

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

DownBlock = Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
UpBlock = Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]


class VqConfig(FolderConfig):
    """The fields of `vqvae/config.json`."""

    in_channels: Size
    out_channels: Size
    down_block_types: Annotated[tuple[DownBlock, ...], Field(min_length=1, max_length=8)]
    up_block_types: Annotated[tuple[UpBlock, ...], Field(min_length=1, max_length=8)]
    block_out_channels: Annotated[tuple[Size, ...], Field(min_length=1, max_length=8)]
    layers_per_block: Annotated[int, Field(gt=0, le=64, strict=True)]
    latent_channels: Size
    num_vq_embeddings: Size
    norm_num_groups: Size
    act_fn: Literal["silu", "swish", "gelu", "relu", "mish"] = "silu"
    vq_embed_dim: Size | None = None
    sample_size: Size = 32
    scaling_factor: float = 0.18215
    norm_type: Literal["group", "spatial"] = "group"
    mid_block_add_attention: Flag = True
    lookup_from_codebook: Flag = False
    force_upcast: Flag = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        blocks = len(self.block_out_channels)
        if len(self.down_block_types) != blocks or len(self.up_block_types) != blocks:
            raise ValueError(
                "down_block_types, up_block_types and block_out_channels must be equally long"
            )
        return self

    @property
    def downscale(self) -> int:
        """Pixels a token, on each axis."""
        return int(2 ** (len(self.block_out_channels) - 1))


def vq_config(vqvae: VQModel) -> VqConfig:
    """The config of a model that is there."""
    return VqConfig.model_validate({name: vqvae.config[name] for name in VqConfig.model_fields})


def load_vqvae(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> VQModel:
    """The VQModel in `folder`, in float32 where its config asks for it. Raises CheckpointError."""
    config = read_config(folder / "config.json", VqConfig)
    try:
        with torch.device("meta"):
            vqvae = VQModel(**config.model_dump())
    except Exception as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: no VQModel can be made ({one_line(error)})"
        ) from None
    dtype = torch.float32 if config.force_upcast else dtype
    load_module(vqvae, folder / WEIGHTS_FILE, dtype=dtype, device=device)
    return vqvae.eval()


def save_vqvae(vqvae: VQModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Writes config.json and the weights, stored as `dtype`. Raises CheckpointError on NaN."""
    values = vq_config(vqvae).model_dump(mode="json") | {"_class_name": "VQModel"}
    save_module(vqvae, folder / WEIGHTS_FILE, config=values, dtype=dtype)
