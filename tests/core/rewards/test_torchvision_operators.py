"""torchvision can be imported beside a torch that its compiled part was not built for."""

import subprocess
import sys

import pytest

pytest.importorskip("torchvision")


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


def test_open_clip_imports_after_the_core():
    assert run("import cogrpo_core, open_clip, torchvision; print(torchvision.__name__)")


def test_the_watch_goes_when_it_has_done_its_work():
    code = """
import sys
from cogrpo_core.torchvision_operators import _BeforeTorchvision, watch
def watching(): return sum(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path)
watch()
assert watching() == 1
import torchvision
assert watching() == 0
watch()
assert watching() == 0
print("done")
"""
    assert run(code) == "done"


def test_the_core_imports_no_torch_by_itself():
    assert run("import sys, cogrpo_core; print('torch' in sys.modules)") == "False"
