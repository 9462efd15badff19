"""How much memory a run will take, computed before it starts."""

from dataclasses import dataclass

from cogrpo_core.kernels.logprob import DEVICE_CHUNK
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.models.vqvae import vq_config
from cogrpo_trainer.train.config import TrainConfig

FLOAT = 4
GIB = 1 << 30
ACTIVATIONS_A_BLOCK = 26
"""Values of width D that a block keeps for its backward pass, a position; a test measures it."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by what they hold."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """One line a part, and the total."""
        rows = [*self.parts.items(), ("in all", self.total)]
        return [f"{size / GIB:8.2f} GiB  {name}" for name, size in rows]


def memory_plan(checkpoint: Checkpoint, config: TrainConfig, trained: int) -> MemoryPlan:
    """The plan for a loaded model of which `trained` parameters have gradients."""
    transformer = checkpoint.transformer
    model = transformer.config
    weights = sum(p.numel() * p.element_size() for p in transformer.parameters())
    text = sum(p.numel() * p.element_size() for p in checkpoint.text_encoder.parameters())
    pixels = sum(p.numel() * p.element_size() for p in checkpoint.vqvae.parameters())
    scale = vq_config(checkpoint.vqvae).downscale
    tokens = checkpoint.generation.height * checkpoint.generation.width // scale**2
    inner = tokens // 4 if model.downsample else tokens
    positions = inner + checkpoint.text_encoder.max_length
    blocks = model.num_layers + model.num_single_layers
    rows = 2 * config.learner_batch  # both passes of guidance
    blocks_bytes = rows * blocks * positions * model.dim * ACTIVATIONS_A_BLOCK * FLOAT
    attention = rows * blocks * model.num_attention_heads * positions**2 * FLOAT
    # Every token is filled once in T steps. Two chunks of logits exist at once; an exact KL needs
    # all of them, of both models, with their softmax.
    filled = -(-tokens // config.num_inference_steps) * config.learner_batch
    logits = 2 * min(filled * model.codebook_size, DEVICE_CHUNK) * FLOAT
    if config.kl_weight:
        logits += 6 * filled * model.codebook_size * FLOAT
    parts = {
        "weights of the model": weights,
        "text encoder and VQ model": text + pixels,
        "gradients and Adam's two moments": 3 * trained * FLOAT,
        "average of the weights": trained * FLOAT,
        f"activations of {config.learner_batch} steps, backward": blocks_bytes + logits,
        "attention weights, where the backend keeps them": attention,
    }
    if config.kl_weight:
        parts["reference model of the KL"] = weights
    if config.schedule_phase.keep_features:
        phase = config.model_phase if config.mode == "joint" else config.schedule_phase
        steps = phase.batch_size * config.num_inference_steps
        parts["what the policy read in a rollout"] = steps * inner * model.dim * FLOAT
    return MemoryPlan(parts)
