"""Ways to break, or change, a copy of a checkpoint folder."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VQVAE = "vqvae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
POLICY = "schedule_policy/model.safetensors"
WEIGHTS = [TRANSFORMER, VQVAE, TEXT, POLICY]

Break = Callable[[Path], None]


def edit_json(file: str, **changes: Any) -> Break:
    """Sets fields of a JSON file; `...` takes one away."""

    def apply(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        for key, value in changes.items():
            values.pop(key, None)
            if value is not ...:
                values[key] = value
        (folder / file).write_text(json.dumps(values))

    return apply


def write(file: str, content: bytes) -> Break:
    def apply(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return apply


def remove(file: str) -> Break:
    def apply(folder: Path) -> None:
        (folder / file).unlink()

    return apply


def edit_weights(file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return apply


def keep_bytes(file: str, part: float) -> Break:
    def apply(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * part)])

    return apply


def pickled(file: str, name: str) -> Break:
    """A pickle in place of the safetensors; opening it would end the test with an error."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit('a pickle was opened')",)

    def apply(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).with_name(name).write_bytes(pickle.dumps(Bomb()))

    return apply


def drop_key(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


def set_key(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: value})


def poison(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[0] = value

    return change
