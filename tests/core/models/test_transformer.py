"""MeissonicTransformer against the numbers of the reference, and the properties it must keep."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cogrpo_core.models.transformer import MeissonicTransformer

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
CASES = [
    ("meissonic-tiny", 0),
    ("meissonic-tiny", 1),
    ("meissonic-tiny", 2),
    ("meissonic-tiny-no-downsample", 0),
    ("meissonic-tiny-no-downsample", 1),
]


def golden_case(model: str, case: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The inputs of one golden case and the reference's logits."""
    tensors = load_file(GOLDEN / model / "transformer_golden.safetensors")
    prefix = f"case{case}."
    inputs = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return inputs, inputs.pop("logits")


@pytest.mark.parametrize(("model", "case"), CASES)
def test_golden_logits_eager(model: str, case: int) -> None:
    transformer = MeissonicTransformer.from_pretrained(GOLDEN / model / "transformer")
    inputs, logits = golden_case(model, case)
    with torch.inference_mode():
        output = transformer(**inputs)
    torch.testing.assert_close(output.logits, logits, atol=1e-4, rtol=0)
