"""Saves and restores a training run: safetensors and a manifest, replaced as a whole."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_state(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Writes the state after `step` steps. A crash in between leaves the state before."""
    name = f"state-{step:07d}"
    target = folder / name
    partial = folder / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for part, module in modules.items():
        tensors = {key: _copy(value) for key, value in module.named_parameters()}
        save_file(tensors, partial / f"{part}.safetensors")
    save_file(_optimizer_tensors(optimizers), partial / "optimizers.safetensors")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    manifest = folder / ".manifest.partial"
    manifest.write_text(json.dumps({"step": step, "state": name}))
    os.replace(manifest, folder / "manifest.json")
    for old in folder.glob("state-*"):
        if old != target:
            shutil.rmtree(old)


def load_state(
    folder: Path, modules: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer]
) -> int:
    """Restores what `save_state` wrote; gives the steps done, 0 where nothing was saved."""
    if not (folder / "manifest.json").exists():
        return 0
    manifest = json.loads((folder / "manifest.json").read_text())
    state = folder / manifest["state"]
    for part, module in modules.items():
        saved = load_file(state / f"{part}.safetensors")
        assert set(saved) == {name for name, _ in module.named_parameters()}
        module.load_state_dict(saved, strict=False)  # buffers are constants
    tensors = load_file(state / "optimizers.safetensors")
    for i, optimizer in enumerate(optimizers):
        for j, parameter in enumerate(_parameters(optimizer)):
            prefix = f"{i}.{j}."
            optimizer.state[parameter] = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
    return int(manifest["step"])


def _optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    tensors = {}
    for i, optimizer in enumerate(optimizers):
        for j, parameter in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state[parameter].items():
                tensors[f"{i}.{j}.{key}"] = _copy(torch.as_tensor(value))
    return tensors


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _copy(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format)
