"""The files of a shipped reward's folder."""

import hashlib
from pathlib import Path

from cogrpo_core.models.hub import EMBEDDED_FOLDER

REWARDS_FOLDER = EMBEDDED_FOLDER / "rewards"
WEIGHTS_FILE = "model.safetensors"


def file_version(folder: Path) -> str:
    """A short hash over a folder's weights and config."""
    total = hashlib.sha256()
    for name in (WEIGHTS_FILE, "config.json"):
        total.update((folder / name).read_bytes())
    return total.hexdigest()[:12]
