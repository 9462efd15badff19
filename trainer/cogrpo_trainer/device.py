"""Where training and measuring run unless told otherwise, and on how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def best_device() -> str:
    """`cuda` where there is one, else `cpu`.

    On CUDA, convolutions then compute in full float32, as matrix products do anyway: the learner
    must find what the sampler logged.
    """
    if not torch.cuda.is_available():
        return "cpu"
    torch.backends.cudnn.allow_tf32 = False
    return "cuda"


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes on `count` threads meanwhile, and on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
