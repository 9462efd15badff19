"""States on disk: whole or not there, checked by their hashes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cogrpo_trainer import state as state_module
from cogrpo_trainer.state import SavedState, StateError, load_state, save_state


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"weights": {"a": torch.full((3,), value)}, "optimizer": {"0.step": torch.tensor(value)}}


def saved(folder) -> SavedState:
    state = load_state(folder)
    assert state is not None
    return state


def test_what_was_saved_comes_back(tmp_path):
    assert load_state(tmp_path) is None
    save_state(tmp_path, 1, tensors(1.0), {"note": [1, 2]})
    save_state(tmp_path, 2, tensors(2.0))
    state = saved(tmp_path)
    assert (state.step, state.notes) == (2, {})
    assert torch.equal(state.parts["weights"]["a"], torch.full((3,), 2.0))
    assert float(state.parts["optimizer"]["0.step"]) == 2.0
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-0000002"]


def test_the_same_step_can_be_saved_again(tmp_path):
    save_state(tmp_path, 1, tensors(1.0))
    save_state(tmp_path, 1, tensors(5.0))
    assert float(saved(tmp_path).parts["weights"]["a"][0]) == 5.0


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named(tmp_path, damage):
    save_state(tmp_path, 1, tensors(1.0))
    path = tmp_path / "state-0000001" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-4])
    else:
        path.unlink()
    with pytest.raises(StateError, match=r"weights\.safetensors: missing or damaged"):
        load_state(tmp_path)


def test_a_strange_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"step": 1}))
    with pytest.raises(StateError, match=r"manifest\.json: not the manifest"):
        load_state(tmp_path)


def test_a_full_disk_keeps_the_state_before(tmp_path, monkeypatch):
    save_state(tmp_path, 1, tensors(1.0))

    def full(path, _tensors):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_module, "_write", full)
    with pytest.raises(StateError, match="No space left on device"):
        save_state(tmp_path, 2, tensors(2.0))
    monkeypatch.undo()
    assert saved(tmp_path).step == 1
    assert not list(tmp_path.glob(".*partial"))


WRITER = """
import sys, torch
from pathlib import Path
from cogrpo_trainer.state import save_state
print("ready", flush=True)
step = 0
while True:
    step += 1
    save_state(Path(sys.argv[1]), step, {"weights": {"a": torch.full((100_000,), float(step))}})
"""


def test_killed_at_any_moment_the_last_state_is_whole(tmp_path):
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 30
        while not (folder / "manifest.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.02 + 0.013 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        state = saved(folder)
        expected = torch.full((100_000,), float(state.step))
        assert torch.equal(state.parts["weights"]["a"], expected)
