"""What a service takes for itself: port, data and runtime folder; and how it is stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cogrpo_server.places import check_port, fresh_runtime_dir, locked_data_dir, runtime_dir
from cogrpo_server.settings import SettingsError


def test_a_port_in_use_is_one_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} is in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_a_data_folder_serves_one(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "data"
    with locked_data_dir(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(SettingsError, match="another service"), locked_data_dir(folder):
            pass
    with locked_data_dir(folder):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="unusable"), locked_data_dir(tmp_path / "file"):
        pass


def test_the_runtime_folder_is_private_short_and_cleared(tmp_path: Path) -> None:
    with fresh_runtime_dir(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder)) < 40  # Ray's socket paths below it must stay under 107 bytes
        (folder / "left").write_text("by a service that was killed")
        with fresh_runtime_dir(tmp_path) as again:
            assert list(again.iterdir()) == []
    assert not folder.exists()


def test_a_runtime_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    folder = runtime_dir(tmp_path)
    folder.symlink_to(tmp_path / "precious")
    try:
        with pytest.raises(SettingsError, match="somebody else"), fresh_runtime_dir(tmp_path):
            pass
        assert (tmp_path / "precious").is_dir()
    finally:
        folder.unlink()


STUBBORN = """
import os, signal, sys, time
from cogrpo_server.stop_signals import StopSignals
seconds = float(sys.argv[1])
signals = StopSignals(seconds, lambda: print("stopping", flush=True), lambda: os._exit(7))
with signals.installed():
    print("ready", flush=True)
    {body}
"""


def _run(body: str, seconds: float, signals: int) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN.format(body=body), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.readline()
    for _ in range(signals):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.3)
    output += process.communicate(timeout=20)[0]
    return process.returncode, output


def test_one_signal_is_an_orderly_end() -> None:
    status, output = _run("signals.stopping.wait(20)", 20, signals=1)
    assert (status, output) == (0, "ready\nstopping\n")


def test_a_second_signal_or_the_time_ends_what_does_not_listen() -> None:
    assert _run("time.sleep(30)", 20, signals=2)[0] == 7
    assert _run("time.sleep(30)", 0.5, signals=1)[0] == 7
