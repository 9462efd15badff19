"""The VQ model: a golden decode and an exact round trip."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cogrpo_core.models.vqvae import load_vqvae, save_vqvae, vq_config

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
MODELS = ["meissonic-tiny", "meissonic-tiny-no-downsample"]


@pytest.mark.parametrize("model", MODELS)
def test_golden_decode(model: str) -> None:
    vqvae = load_vqvae(GOLDEN / model / "vqvae")
    golden = load_file(GOLDEN / model / "vqvae_golden.safetensors")
    shape = (*golden["tokens"].shape, vqvae.config.vq_embed_dim)
    with torch.inference_mode():
        image = vqvae.decode(golden["tokens"], force_not_quantize=True, shape=shape).sample
    torch.testing.assert_close(image, golden["image"], atol=1e-4, rtol=0)
    assert image.shape[-1] == golden["tokens"].shape[-1] * vq_config(vqvae).downscale


def test_round_trip_is_exact(tmp_path: Path) -> None:
    vqvae = load_vqvae(GOLDEN / MODELS[0] / "vqvae")
    save_vqvae(vqvae, tmp_path)
    again = load_vqvae(tmp_path)
    assert vq_config(again) == vq_config(vqvae)
    for name, tensor in vqvae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_force_upcast_keeps_float32(tmp_path: Path) -> None:
    vqvae = load_vqvae(GOLDEN / MODELS[0] / "vqvae")
    save_vqvae(vqvae, tmp_path / "half")
    vqvae.register_to_config(force_upcast=True)
    save_vqvae(vqvae, tmp_path / "upcast")
    for name, dtype in (("half", torch.bfloat16), ("upcast", torch.float32)):
        loaded = load_vqvae(tmp_path / name, dtype=torch.bfloat16)
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
