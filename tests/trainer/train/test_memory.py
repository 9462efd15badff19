"""The memory plan: its parts add up, and its constant is what a backward pass keeps."""

import pytest
import torch

from cogrpo_core.models.checkpoint import load_checkpoint
from cogrpo_core.models.config import TransformerConfig
from cogrpo_core.models.transformer import Conditioning, MeissonicTransformer
from cogrpo_trainer.train.memory import ACTIVATIONS_A_BLOCK, memory_plan


def kept_bytes(two_stream: int, single_stream: int, dim: int = 128) -> int:
    """What a forward pass keeps for its backward pass, weights aside."""
    config = TransformerConfig(
        num_layers=two_stream,
        num_single_layers=single_stream,
        num_attention_heads=2,
        attention_head_dim=dim // 2,
        joint_attention_dim=dim,
        pooled_projection_dim=dim,
        axes_dims_rope=(dim // 2 - 32, 16, 16),
        vocab_size=300,
        codebook_size=256,
        downsample=False,
        upsample=False,
    )
    model = MeissonicTransformer(config)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    text = torch.randn(2, 16, dim, requires_grad=True)
    conditioning = Conditioning(text, torch.randn(2, dim, requires_grad=True))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.states(torch.zeros(2, 8, 8, dtype=torch.long), torch.ones(2), conditioning)
    return sum(kept.values())


@pytest.mark.parametrize(("kernels", "least"), [("", 0.7), ("reference", 0.75)])
def test_a_block_keeps_what_the_plan_says(kernels, least, monkeypatch):
    """With the forms for CPUs, and with the definitions, which keep more and run on a GPU."""
    monkeypatch.setenv("COGRPO_KERNELS", kernels)
    positions, dim, floats = 2 * (16 + 64), 128, 4
    for more in ((3, 1), (1, 3)):
        extra = (kept_bytes(*more) - kept_bytes(1, 1)) / 2
        found = extra / (positions * dim * floats)
        assert least * ACTIVATIONS_A_BLOCK < found <= ACTIVATIONS_A_BLOCK


def test_the_plan_adds_up_and_names_its_parts(make_config):
    config = make_config(kl_weight=0.1)
    checkpoint = load_checkpoint(config.model)
    trained = sum(parameter.numel() for parameter in checkpoint.transformer.parameters())
    plan = memory_plan(checkpoint, config, trained)
    assert plan.parts["weights of the model"] == 4 * trained
    assert plan.parts["gradients and Adam's two moments"] == 12 * trained
    assert plan.parts["reference model of the KL"] == 4 * trained
    assert plan.total == sum(plan.parts.values())
    assert plan.lines()[-1].endswith("in all")
    keeping = make_config(schedule_phase={"keep_features": True})
    width = checkpoint.transformer.config.dim
    features = memory_plan(checkpoint, keeping, trained).parts["what the policy read in a rollout"]
    assert features == 4 * 3 * 4 * width * 4  # samples, steps, cells, and bytes of a float
    larger = memory_plan(checkpoint, make_config(learner_batch=8), trained)
    smaller = memory_plan(checkpoint, make_config(learner_batch=4), trained)
    assert larger.total > smaller.total
