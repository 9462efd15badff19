"""From the name of a checkpoint to its folder: a path, an embedded model, or a Hub id."""

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cogrpo_core.models.weights import CheckpointError, one_line

EMBEDDED_FOLDER = Path(__file__).parents[1] / "weights"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
FILES = [
    "model_index.json",
    "generation_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vqvae/config.json",
    "vqvae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/*.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
    "schedule_policy/config.json",
    "schedule_policy/model.safetensors",
]
CONTACT_SECONDS = 10.0


def embedded_names() -> list[str]:
    """The models that are part of the package."""
    if not EMBEDDED_FOLDER.is_dir():
        return []
    return sorted(p.parent.name for p in EMBEDDED_FOLDER.glob("*/model_index.json"))


def find_folder(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The folder that `name_or_path` means; a Hub id is downloaded first, or found in its cache.

    Only the files a checkpoint is made of are fetched: JSON, text and safetensors. Raises
    CheckpointError.
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str) and name in embedded_names():
        return EMBEDDED_FOLDER / name
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{name}: is a file; give the checkpoint's folder")
    if isinstance(name_or_path, str) and HUB_ID.fullmatch(name):
        return _from_hub(name, revision)
    known = ", ".join(embedded_names()) or "none"
    raise CheckpointError(
        f"{name}: no such folder; give a checkpoint's folder, an embedded model's name ({known}) "
        f"or a Hub id such as MeissonFlow/Meissonic"
    )


def _from_hub(repo_id: str, revision: str | None) -> Path:
    at = f" at revision '{revision}'" if revision else ""
    try:
        # The listing fails fast and says why; the download then knows that the Hub answers.
        HfApi().model_info(repo_id, revision=revision, timeout=CONTACT_SECONDS)
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=FILES, etag_timeout=CONTACT_SECONDS
        )
    except GatedRepoError:
        raise CheckpointError(
            f"{repo_id}: the Hub asks for permission; accept its terms there and set HF_TOKEN"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise CheckpointError(
            f"{repo_id}: neither a folder here nor a model on the Hub{at}; check the name"
        ) from None
    except Exception as error:
        # Whatever the Hub's HTTP client raises, and that differs by its version: no connection.
        return _from_cache(repo_id, revision, at, error)
    return Path(folder)


def _from_cache(repo_id: str, revision: str | None, at: str, error: Exception) -> Path:
    try:
        return Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=FILES, local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, OSError):
        raise CheckpointError(
            f"{repo_id}: no folder here, not in the Hub's cache{at}, and the Hub cannot be reached "
            f"({type(error).__name__}: {one_line(error)[:200]}); connect, or give a folder"
        ) from None
