"""What the paper's runs take on the 1B, in GPU hours and memory: computed, never measured.

    python -m cogrpo_trainer.benchmarks.paper

Operations are counted on the meta device, over the model's own code at full size. What a GPU makes
of its peak is an assumption (`USED`). docs/paper.md shows what is printed.
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import VQModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from cogrpo_core.models import meissonic
from cogrpo_core.models.checkpoint import Checkpoint, GenerationDefaults
from cogrpo_core.models.text_encoder import TextEncoder
from cogrpo_core.models.transformer import MeissonicTransformer
from cogrpo_trainer.benchmarks.full_size import clip_tokenizer
from cogrpo_trainer.train.config import TrainConfig, load_config
from cogrpo_trainer.train.lora import add_lora
from cogrpo_trainer.train.memory import memory_plan
from cogrpo_trainer.train.run import fresh_policy
from cogrpo_trainer.train.weights import Trained

PRESET = "meissonic-1b"
PEAK = {"float32": 19.5e12, "TF32": 156e12, "bfloat16": 312e12}
"""FLOP/s of an A100 by NVIDIA's data sheet, dense."""
USED = 0.4
"""The share of the peak that is reached: assumed."""
HOUR = 3600.0
TEXT = 77  # positions
GRID = 64  # tokens on each axis of 1024 pixels
PASSES = 2  # of guidance
LEARNING = 3  # a backward pass counts twice a forward pass
PICTURES = {"imagereward": 500, "hpsv2": 3200, "geneval": 4 * 553, "dpg": 4 * 1065}
"""Of each suite: the paper's 500 prompts, 4 x 800, and four pictures of each published prompt."""
STEPS = (8, 16, 32, 48, 64)
RUNS: dict[str, tuple[str, ...]] = {
    "Tables 3, 4, 5b, 5c, 5e: alternating": (),
    "Table 5a: model only": ("mode=model-only",),
    "Table 5a: each of + r, + tau_r, + tau_s": ('schedule_phase.actions=["remask_ratio"]',),
    "Table 5d: joint": ("mode=joint",),
}


def empty_checkpoint() -> Checkpoint:
    """Meissonic at full size on the meta device: shapes without weights."""
    with torch.device("meta"):
        transformer = MeissonicTransformer(meissonic.TRANSFORMER)
        vqvae = VQModel(**meissonic.VQVAE.model_dump())
        text = CLIPTextModelWithProjection(CLIPTextConfig(**meissonic.TEXT_ENCODER.model_dump()))
    return Checkpoint(
        transformer=transformer.to("meta"),  # the frequencies of the time are made on the CPU
        vqvae=vqvae,
        text_encoder=TextEncoder(text, clip_tokenizer()),
        schedule_policy=None,
        generation=GenerationDefaults(),
        name=PRESET,
        fingerprint="",
    )


def counted(run: Callable[[], object]) -> float:
    """The floating-point operations of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def pass_flops(transformer: MeissonicTransformer, grid: int = GRID, text: int = TEXT) -> float:
    """Of one forward pass over one picture, all its tokens through the head."""
    config = transformer.config
    device = next(transformer.parameters()).device
    return counted(
        lambda: transformer(
            token_ids=torch.zeros(1, grid, grid, dtype=torch.long, device=device),
            encoder_hidden_states=torch.zeros(1, text, config.joint_attention_dim, device=device),
            pooled_projections=torch.zeros(1, config.pooled_projection_dim, device=device),
            micro_conds=torch.zeros(1, 5, device=device),
            timestep=torch.zeros(1, device=device),
        )
    )


def decode_flops(vqvae: VQModel, grid: int = GRID) -> float:
    """Of one picture's tokens to its pixels."""
    config = vqvae.config
    latent = torch.zeros(1, config.vq_embed_dim, grid, grid, device=vqvae.device)
    return counted(lambda: vqvae.decoder(vqvae.post_quant_conv(latent)))


def training_flops(config: TrainConfig, one_pass: float, decode: float) -> float:
    """Of a whole run: rollouts, the gate, and what the learner computes again, with gradients.

    Rewards are left out: below a hundredth of a picture's passes.
    """
    total = 0.0
    for part, iterations in config.phases:
        phase = config.schedule_phase if part == "schedule" else config.model_phase
        # The schedule's phase reads the conditional pass, and has no gradient in it.
        learned = 1 if part == "schedule" else PASSES * LEARNING
        steps = phase.batch_size * config.num_inference_steps
        passes = steps * (PASSES + phase.step_share * learned) + config.gate_steps * PASSES
        total += iterations * (passes * one_pass + phase.batch_size * decode)
    return config.cycles * total


def evaluation_hours(pictures: int, steps: int, one_pass: float, decode: float) -> float:
    """Of a suite's pictures: the transformer in bfloat16, the decoder in float32."""
    transformer = steps * PASSES * one_pass / PEAK["bfloat16"]
    return pictures * (transformer + decode / PEAK["float32"]) / USED / HOUR


def plan_lines(checkpoint: Checkpoint, overrides: Sequence[str]) -> list[str]:
    """The memory plan as `cogrpo train` prints it."""
    config = load_config(PRESET, None, overrides)
    transformer = checkpoint.transformer.requires_grad_(True)
    if config.model_phase.lora_rank:
        transformer.requires_grad_(False)
        add_lora(transformer, config.model_phase.lora_rank)
    parameters = Trained(transformer, fresh_policy(checkpoint, config)).parameters()
    trained = sum(value.numel() for value in parameters.values())
    lines = memory_plan(checkpoint, config, trained).lines()
    return [f"{trained:,} trained parameters; memory that this run needs:", *lines]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def lines() -> list[str]:
    """Everything that is printed."""
    checkpoint = empty_checkpoint()
    one_pass = pass_flops(checkpoint.transformer)
    decode = decode_flops(checkpoint.vqvae)
    said = [
        f"One forward pass at 1024 px: {one_pass / 1e12:.2f} TFLOP; decoding a picture: "
        f"{decode / 1e12:.2f} TFLOP.",
        f"Assumed: an A100 reaches {USED:.0%} of "
        + ", ".join(f"{peak / 1e12:g} ({name})" for name, peak in PEAK.items())
        + " TFLOP/s.",
        "",
    ]
    rows = []
    for name, overrides in RUNS.items():
        total = training_flops(load_config(PRESET, None, overrides), one_pass, decode)
        hours = [total / PEAK[kind] / USED / HOUR for kind in ("float32", "TF32")]
        rows.append([name, *(f"{one:,.0f}" for one in hours)])
    said += table(["training run", "GPU hours, float32", "GPU hours, TF32"], rows)
    rows = [
        [name, f"{pictures:,}"]
        + [f"{evaluation_hours(pictures, steps, one_pass, decode):.1f}" for steps in STEPS]
        for name, pictures in PICTURES.items()
    ]
    said += ["", *table(["GPU hours of a suite", "pictures", *(f"{s} steps" for s in STEPS)], rows)]
    for name, overrides in (("whole weights", ()), ("LoRA", ("model_phase.lora_rank=16",))):
        said += ["", f"{name}:", "", "```", *plan_lines(checkpoint, overrides), "```"]
    return said


if __name__ == "__main__":
    print("\n".join(lines()))
