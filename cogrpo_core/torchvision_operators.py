"""Lets torchvision be imported where its compiled part does not fit the installed torch.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its import fails with `operator
torchvision::nms does not exist`, and with it diffusers, transformers, timm and open_clip. None of
them needs the operators here, only their names.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_kept: list[Any] = []  # a library takes its operators along when it goes


class _BeforeTorchvision:
    """Finds nothing itself; it is asked first, before torchvision is imported."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(fullname)
            if spec is not None and spec.origin is not None:
                define_missing_operators(Path(spec.origin).parent)
        return None


def watch() -> None:
    """Has `define_missing_operators` called when torchvision is first looked for, if it ever is."""
    watched = any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path)
    if not watched and "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


def define_missing_operators(folder: Path) -> bool:
    """Defines torchvision's operators without code where they cannot be loaded from `folder`.

    Only for a torch without CUDA; gives whether they were defined. Calling one is an error.
    """
    import torch

    if torch.version.cuda is not None or _loads(folder) or _kept:
        return False
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _kept.append(library)
    return True


def _loads(folder: Path) -> bool:
    """Whether torchvision's compiled part lies in its folder and can be loaded."""
    import torch

    for suffix in EXTENSION_SUFFIXES:
        file = folder / f"_C{suffix}"
        if file.is_file():
            try:
                torch.ops.load_library(str(file))
            except OSError:
                return False
            return True
    return False
