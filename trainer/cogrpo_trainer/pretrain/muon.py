"""Muon (Jordan et al. 2024): momentum, made orthogonal by Newton-Schulz, for matrices.

torch.optim.Muon always orthogonalises in bfloat16, which takes fifty times as long on a CPU without
bfloat16 instructions. This one takes the type that the CPU is fast in, and equal shapes at once.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; singular values end near 1
ROUNDS = 5


def fast_dtype() -> torch.dtype:
    """bfloat16 where the CPU has instructions for it, else float32."""
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """[K, m, n] -> the nearest (semi-)orthogonal matrices, roughly: singular values 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """For matrices [m, n] only; Nesterov momentum, decoupled weight decay.

    The step is `lr` times an orthogonal matrix, times sqrt(max(1, m / n)).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = fast_dtype()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                directions = [self._direction(p, group) for p in parameters]
                updates = orthogonalise(torch.stack(directions), self.dtype)
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, updates.unbind(), alpha=-group["lr"] * scale)

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None and gradient.ndim == 2
        buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(gradient))
        buffer.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(buffer, group["momentum"])
