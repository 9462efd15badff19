"""Image codes: a `diffusers.VQModel` with codes local to their patch and a decoder that is not.

Three stages: the encoder learns the principal components of patches; k-means on its latents sets
the codebook; the decoder learns whole pictures from codes. Codes that depend on their patch alone
are what a transformer can learn in hours; the gate on them is the checker's agreement, not PSNR.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray
from torch.nn import functional as F

from cogrpo_core.shapes.render import render
from cogrpo_core.shapes.scenes import sample_scene
from cogrpo_trainer.pretrain.data import training_spec
from cogrpo_trainer.pretrain.patches import (
    PatchTokenizer,
    as_images,
    encode_patches,
    nearest_codes,
    to_patches,
    unique_patches,
)
from cogrpo_trainer.pretrain.state import load_state, save_state

ENCODER_LR = DECODER_LR = 2e-3

Report = Callable[[str, int, dict[str, float]], None]


@dataclass(frozen=True)
class CodesConfig:
    """Sizes and budgets of the three stages."""

    codes: int = 2048
    width: int = 16  # of a code
    pictures: int = 20_000  # whose patches are clustered
    encoder_steps: int = 1_500
    kmeans_rounds: int = 40
    decoder_steps: int = 3_500
    decoder_batch: int = 16
    seed: int = 0


def build_vqvae(config: CodesConfig) -> VQModel:
    """An untrained VQModel that reduces pictures by 4 in each direction."""
    return VQModel(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        latent_channels=config.width,
        sample_size=64,
        num_vq_embeddings=config.codes,
        norm_num_groups=8,
        vq_embed_dim=config.width,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
        force_upcast=True,
    )


def training_pictures(number: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Fresh pictures of compositions that are not held out, uint8 [B, 64, 64, 3]."""
    return np.stack([render(sample_scene(training_spec(rng), rng)) for _ in range(number)])


def train_codes(config: CodesConfig, folder: Path, report: Report) -> VQModel:
    """Runs the three stages, or goes on from what `folder` holds of them.

    `report(stage, step, values)` is called now and then.
    """
    torch.manual_seed(config.seed)
    vqvae = build_vqvae(config)
    if not load_state(folder / "codebook", {"vqvae": vqvae}, []):
        rng = np.random.default_rng(config.seed)
        patches, _, counts = unique_patches(to_patches(training_pictures(config.pictures, rng)))
        fit_encoder(vqvae, patches, counts, config, report)
        set_codebook(vqvae, patches, counts, config, report)
        save_state(folder / "codebook", 1, {"vqvae": vqvae}, [])
    fit_decoder(vqvae, config, folder / "decoder", report)
    return vqvae.eval()


def fit_encoder(
    vqvae: VQModel,
    patches: NDArray[np.uint8],
    counts: NDArray[np.intp],
    config: CodesConfig,
    report: Report,
) -> None:
    """Regresses the latents of single patches [U, 48] on their first principal components."""
    values = torch.from_numpy(patches).float().div_(255)
    weights = torch.from_numpy(np.sqrt(counts)).float()
    mean = (weights[:, None] * values).sum(0) / weights.sum()
    centred = values - mean
    _, _, axes = torch.linalg.svd((weights.sqrt()[:, None] * centred), full_matrices=False)
    targets = centred @ axes[: config.width].T  # [U, C], in units of pixel distance
    parameters = [*vqvae.encoder.parameters(), *vqvae.quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0)
    images = as_images(patches)
    for step in range(config.encoder_steps):
        for group in optimizer.param_groups:
            group["lr"] = ENCODER_LR * one_cycle(step, config.encoder_steps)
        rows = torch.multinomial(weights, 512, replacement=True)
        latents = vqvae.encode(images[rows]).latents.flatten(1)
        loss = F.mse_loss(latents, targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            report("encoder", step + 1, {"loss": float(loss.detach())})


def set_codebook(
    vqvae: VQModel,
    patches: NDArray[np.uint8],
    counts: NDArray[np.intp],
    config: CodesConfig,
    report: Report,
) -> None:
    """K-means over the encoder's latents, rows weighted by the root of their frequency."""
    latents = encode_patches(vqvae.eval(), patches)
    weights = torch.from_numpy(np.sqrt(counts)).float()
    codebook = latents[torch.multinomial(weights, config.codes)].clone()
    for step in range(config.kmeans_rounds):
        codes = nearest_codes(latents, codebook)
        mass = torch.zeros(config.codes).index_add_(0, codes, weights)
        total = torch.zeros_like(codebook).index_add_(0, codes, weights[:, None] * latents)
        spread = (latents - codebook[codes]).square().sum(1)
        empty = mass == 0
        codebook = torch.where(empty[:, None], codebook, total / mass.clamp(min=1e-9)[:, None])
        if empty.any():  # a code without patches moves to one that is badly served
            codebook[empty] = latents[torch.multinomial(weights * spread, int(empty.sum()))]
        report("codebook", step + 1, {"distance": float((weights * spread).sum() / weights.sum())})
    vqvae.quantize.embedding.weight.data.copy_(codebook)


def fit_decoder(vqvae: VQModel, config: CodesConfig, folder: Path, report: Report) -> None:
    """Learns pictures from their codes; pixels that are no background weigh more."""
    tokenizer = PatchTokenizer(vqvae.eval())
    vqvae.decoder.to(memory_format=torch.channels_last)
    parameters = [*vqvae.post_quant_conv.parameters(), *vqvae.decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-4)
    for step in range(load_state(folder, {"vqvae": vqvae}, [optimizer]), config.decoder_steps):
        for group in optimizer.param_groups:
            group["lr"] = DECODER_LR * one_cycle(step, config.decoder_steps)
        rng = np.random.default_rng([config.seed, step])
        pictures = training_pictures(config.decoder_batch, rng)
        target = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
        with torch.autocast("cpu", torch.bfloat16):
            image = decode(vqvae, torch.from_numpy(tokenizer(pictures)))
        background = target.flatten(2).median(dim=2).values[..., None, None]
        weight = 1 + 4 * ((target - background).abs().amax(1, keepdim=True) > 0.02).float()
        error = image.float() - target
        loss = (weight * (error.abs() + 4 * error.square())).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done = step + 1
        if done % 50 == 0:
            psnr = -10 * torch.log10(error.detach().square().mean())
            report("decoder", done, {"loss": float(loss.detach()), "psnr": float(psnr)})
        if done % 500 == 0 or done == config.decoder_steps:
            save_state(folder, done, {"vqvae": vqvae}, [optimizer])
    vqvae.decoder.to(memory_format=torch.contiguous_format)


def one_cycle(step: int, steps: int) -> float:
    """The factor on a learning rate: up over the first tenth, then a cosine down to zero."""
    rise = steps / 10
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def decode(vqvae: VQModel, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [B, N] of square pictures to images [B, 3, H, W], not clamped, with gradient."""
    side = int(tokens.shape[1] ** 0.5)
    codes = vqvae.quantize.embedding.weight.detach()[tokens]
    quantised = codes.view(len(tokens), side, side, -1).permute(0, 3, 1, 2)
    return vqvae.decoder(vqvae.post_quant_conv(quantised))
