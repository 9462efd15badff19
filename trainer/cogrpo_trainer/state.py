"""A training run's states on disk: safetensors and a manifest with checksums, replaced as a whole.

Killed at any moment, a run finds its last whole state again: files are written beside it, synced,
and the manifest's rename is the one moment at which the new state counts.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cogrpo_core.durable import replace_whole, sync
from cogrpo_trainer.tensors import like

MANIFEST = "manifest.json"


class StateError(ValueError):
    """A saved state that cannot be used, or cannot be written, in one line."""


@dataclass(frozen=True)
class SavedState:
    """A state as it was saved."""

    step: int
    parts: dict[str, dict[str, Tensor]]
    notes: dict[str, Any]


def save_state(
    folder: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes the state after `step` steps: one safetensors file a part, and JSON notes.

    A crash or a full disk leaves the state before. Raises `StateError` when it cannot be written.
    """
    name = f"state-{step:07d}"
    target, partial = folder / name, folder / f".{name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for part, tensors in parts.items():
            _write(partial / f"{part}.safetensors", tensors)
        hashes = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        manifest = {"step": step, "state": name, "sha256": hashes, "notes": dict(notes or {})}
        old = _previous(folder)
        if old == name:  # the same step saved again
            shutil.rmtree(target)
        partial.rename(target)
        replace_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StateError(
            f"{folder}: the state of step {step} cannot be written ({reason}); "
            "the one before is whole"
        ) from None
    for other in folder.glob("state-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def load_state(folder: Path) -> SavedState | None:
    """The last state, or None where nothing was saved.

    Raises `StateError` for a file that is missing or differs from its checksum.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        state = folder / manifest["state"]
        parts = {}
        for name, digest in manifest["sha256"].items():
            file = state / name
            if not file.is_file() or _sha256(file) != digest:
                raise StateError(
                    f"{file}: missing or damaged (its sha256 differs from the manifest's); "
                    f"restore it, or remove {folder} to begin again"
                )
            parts[file.stem] = load_file(file)
        return SavedState(int(manifest["step"]), parts, dict(manifest["notes"]))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise StateError(f"{path}: not the manifest of a saved state ({error})") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, keyed by the parameter's place and the value's name."""
    return {
        f"{i}.{key}": torch.as_tensor(value)
        for i, parameter in enumerate(_parameters(optimizer))
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave."""
    for i, parameter in enumerate(_parameters(optimizer)):
        prefix = f"{i}."
        values = {
            key.removeprefix(prefix): like(value, parameter)
            for key, value in saved.items()
            if key.startswith(prefix)
        }
        if values:
            optimizer.state[parameter] = values


def _parameters(optimizer: torch.optim.Optimizer) -> Sequence[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    copies = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }
    save_file(copies, path)
    sync(path)


def _previous(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MANIFEST).read_text())["state"])
    except (OSError, ValueError, KeyError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
