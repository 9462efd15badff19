"""Where training and measuring run unless told otherwise."""

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
