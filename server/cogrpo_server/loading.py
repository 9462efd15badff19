"""From a model's name to a pipeline that is warm, and what /v1/info tells of it."""

import contextlib
import logging
import os
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from cogrpo_client.types import Info, Limits, ModelInfo
from cogrpo_server.settings import BODY_BYTES, Settings

if TYPE_CHECKING:
    from cogrpo_core.pipeline import CoGRPOPipeline

logger = logging.getLogger(__name__)


class LoadError(ValueError):
    """The checkpoint cannot be used; one line that says why."""


def load_pipeline(settings: Settings, device: str) -> "CoGRPOPipeline":
    """The model of `settings.model` on a device, after a first picture. Raises `LoadError`.

    Where the settings name no dtype, weights are bfloat16 on an accelerator, float32 on a CPU.
    """
    import torch

    from cogrpo_core.models.checkpoint import CheckpointError, load_checkpoint
    from cogrpo_core.pipeline import CoGRPOPipeline

    torch.set_num_threads(settings.threads)
    with contextlib.suppress(RuntimeError):  # it can be set only once a process
        torch.set_num_interop_threads(1)
    dtype = getattr(torch, settings.dtype or ("float32" if device == "cpu" else "bfloat16"))
    try:
        checkpoint = load_checkpoint(settings.model, dtype=dtype, device=device)
    except CheckpointError as error:
        raise LoadError(str(error)) from error
    if Path(settings.model).is_dir():  # callers learn the model's name, not its place
        checkpoint = replace(checkpoint, name=Path(settings.model).resolve().name)
    pipeline = CoGRPOPipeline(checkpoint, decode_tile=settings.decode_tile)
    if settings.compiled:
        _compile(pipeline, settings)
    pipeline("a warm-up picture", num_inference_steps=2, seed=0)
    logger.info("loaded %s, fingerprint %s", checkpoint.name, checkpoint.fingerprint)
    return pipeline


def _compile(pipeline: "CoGRPOPipeline", settings: Settings) -> None:
    """Makes the graphs of all that the engine's slots can hold, in the default size.

    They are kept with the service's data, where the next start finds them.
    """
    from cogrpo_core.compiled import compile_steps, warm_up

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.data_dir / "compiled"))
    began = time.monotonic()
    transformer = pipeline.checkpoint.transformer
    compile_steps(transformer)
    (job,) = pipeline.plan("a warm-up picture")
    conditional, _ = pipeline.condition([job])
    warm_up(transformer, conditional, pipeline.grid(job), 2 * settings.slots)
    logger.info("compiled the steps in %.0f s", time.monotonic() - began)


def describe(pipeline: "CoGRPOPipeline", settings: Settings) -> Info:
    """The response of /v1/info."""
    from cogrpo_core.schedule import LEARNED, PRESETS

    checkpoint = pipeline.checkpoint
    defaults = checkpoint.generation
    has_policy = checkpoint.schedule_policy is not None
    return Info(
        version=version("cogrpo"),
        policy_version=pipeline.policy_version,
        model=ModelInfo(
            name=checkpoint.name,
            fingerprint=checkpoint.fingerprint,
            sizes=list(defaults.sizes),
            height=defaults.height,
            width=defaults.width,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
            schedules=[LEARNED, *PRESETS] if has_policy else list(PRESETS),
        ),
        limits=Limits(
            body_bytes=BODY_BYTES,
            prompt_tokens=checkpoint.text_encoder.max_length,
            images_times_steps=settings.images_times_steps,
            queued_requests=settings.queued_requests,
            request_seconds=settings.request_seconds,
        ),
    )
