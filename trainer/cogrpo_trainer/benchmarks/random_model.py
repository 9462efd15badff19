"""A transformer with random weights, made on the device in a moment, and what its step costs.

Speed does not depend on the weights' values. Shape letters: N image tokens, L text positions, D
width, V codes.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cogrpo_core.models import meissonic
from cogrpo_core.models.config import TransformerConfig
from cogrpo_core.models.layers import AdaNorm, Conv2x2, RMSNorm
from cogrpo_core.models.transformer import MICRO_CONDITIONS, Conditioning, MeissonicTransformer

PREFIX = "random:"
TEXT_POSITIONS = 77
MODULATION = 0.3
"""Size of a modulation: a fresh model's is zero, and then no block would do anything."""

_TINY = TransformerConfig(
    num_layers=2,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=32,
    pooled_projection_dim=32,
    axes_dims_rope=(4, 6, 6),
    vocab_size=136,
    codebook_size=128,
    downsample=True,
    upsample=True,
)
_SIZES = {
    "1b": (meissonic.TRANSFORMER, (64, 64)),
    "1b-512": (meissonic.TRANSFORMER_512, (32, 32)),
    "tiny": (_TINY, (8, 8)),
}


@dataclass(frozen=True)
class RandomModel:
    """A model, its usual grid of tokens, and how long it took to make."""

    transformer: MeissonicTransformer
    grid: tuple[int, int]
    seconds: float

    def conditions(self, count: int) -> tuple[Conditioning, Conditioning]:
        """What `count` texts come to, with guidance and without."""
        first, second = (self._condition(count) for _ in range(2))
        return first, second

    @torch.no_grad()
    def _condition(self, count: int) -> Conditioning:
        config, weight = self.transformer.config, self.transformer.context_embedder.weight
        shapes = (
            (count, TEXT_POSITIONS, config.joint_attention_dim),
            (count, config.pooled_projection_dim),
            (count, MICRO_CONDITIONS),
        )
        return self.transformer.condition(*(torch.randn(s, device=weight.device) for s in shapes))


def random_model(name: str, device: torch.device | str, dtype: torch.dtype) -> RandomModel:
    """`random:1b`, `random:1b-512` (Monetico's shape) or `random:tiny`. Raises ValueError."""
    size = name.removeprefix(PREFIX)
    if size not in _SIZES:
        raise ValueError(f"{name!r} is no model; choose one of {', '.join(map(named, _SIZES))}")
    config, grid = _SIZES[size]
    began = time.perf_counter()
    torch.manual_seed(0)
    with torch.device("meta"):
        model = MeissonicTransformer(config)
    for module in model.modules():
        for key, weight in list(module.named_parameters(recurse=False)):
            value = torch.empty(weight.shape, device=device, dtype=dtype)
            setattr(module, key, nn.Parameter(_fill(module, value), requires_grad=False))
    for module in model.modules():
        if isinstance(module, AdaNorm):
            module.linear.weight.normal_(0.0, MODULATION * config.dim**-0.5)
    model.to(device)  # the buffers
    return RandomModel(model.eval(), grid, time.perf_counter() - began)


def named(size: str) -> str:
    """The name of a model of this size."""
    return PREFIX + size


def _fill(module: nn.Module, value: Tensor) -> Tensor:
    if isinstance(module, RMSNorm):
        return value.normal_(1.0, 0.1)
    if value.ndim == 1:
        return value.normal_(0.0, 0.1)
    transposed = isinstance(module, Conv2x2) and module.transposed
    fan_in = value.shape[0] if transposed else value[0].numel()
    return value.normal_(0.0, fan_in**-0.5)


def pass_operations(
    config: TransformerConfig, grid: tuple[int, int], text: int = TEXT_POSITIONS, *, joined: bool
) -> int:
    """Floating-point operations of the products in one row's `states`: two a multiply-add.

    With `joined`, as compiled.py runs it: tokens are embedded and downsampled by a table.
    """
    tokens, square = grid[0] * grid[1], config.dim**2
    cells = tokens // 4 if config.downsample else tokens
    positions = cells + text
    blocks = config.num_layers + config.num_single_layers
    products = blocks * 12 * square * positions  # q, k, v, out and an MLP of 4 D
    products += (12 * config.num_layers + 3 * config.num_single_layers) * square  # modulation
    attention = blocks * 2 * positions**2 * config.dim
    around = 2 * square * cells + square * tokens  # to and from the inner width; the head's first
    if config.upsample:
        around += square * tokens
    if not joined:
        around += square * tokens * (2 if config.downsample else 1)
    return 2 * (products + attention + around)


def head_operations(config: TransformerConfig, masked: int) -> int:
    """Those of the head's last layer."""
    return 2 * config.dim * config.codebook_size * masked
