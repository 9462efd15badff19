"""What a device reaches at most: a copy of a large tensor, and a large product of matrices."""

from typing import Any

import torch

from cogrpo_trainer.benchmarks.interleave import timed


def device_rates(device: torch.device, rounds: int) -> dict[str, Any]:
    """Bytes read and written a second, and operations of float products (bfloat16 on a GPU).

    The numbers are random: products of equal ones are faster, as fewer bits change.
    """
    on_gpu = device.type == "cuda"
    source = torch.randn(2**28 if on_gpu else 2**24, device=device)
    target = torch.empty_like(source)
    side, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    variants = {
        "copy": lambda: target.copy_(source),
        "matmul": lambda: torch.mm(left, right, out=out),
    }
    times = timed(variants, rounds, at_least=0.02 if on_gpu else 0.0).seconds
    return {
        "name": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "copy_bytes_per_second": 2 * 4 * source.numel() / times["copy"]["wall"],
        "matmul_flops_per_second": 2 * side**3 / times["matmul"]["wall"],
    }
