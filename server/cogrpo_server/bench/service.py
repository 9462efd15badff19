"""`cogrpo serve` as a process of its own, for a benchmark or the demo, and stopped after it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from cogrpo_core.allocator import ALLOCATOR
from cogrpo_server.bench.summary import BenchError
from cogrpo_server.processes import descendants, die_with_parent

START_SECONDS = 300.0
STOP_SECONDS = 60.0
_ENGINE_TITLE = b"ray::ServeReplica:cogrpo:Engine"


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    key: str
    admin_key: str

    def client(self, timeout: float) -> httpx.AsyncClient:
        """A client with as many connections as are wanted; every wait is at most `timeout` s."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            limits=httpx.Limits(max_connections=None),
            timeout=timeout,
            trust_env=False,
        )


@contextlib.contextmanager
def running_service(
    model: str,
    threads: int,
    *,
    redis_url: str | None = None,
    data_dir: Path | None = None,
    options: Sequence[str] = ("--no-trainer",),
) -> Iterator[Service]:
    """A service that is ready, in `data_dir`, or in a folder that goes with it.

    `options` are more of `cogrpo serve`'s. Raises `BenchError` with what it printed when it does
    not start.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COGRPO_", "REDIS")) and name not in ALLOCATOR
    }
    if redis_url is not None:
        environment["REDIS_URL"] = redis_url
    with tempfile.TemporaryDirectory(prefix="cogrpo-bench-") as folder:
        data_dir, port = data_dir or Path(folder) / "data", _free_port()
        output = Path(folder) / "output"
        settings = ["--model", model, "--threads", str(threads)]
        settings += ["--data-dir", str(data_dir), "--port", str(port), *options]
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "cogrpo_client", "serve", *settings],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C is for the benchmark, which then stops it
                preexec_fn=die_with_parent,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, output)
            entries = json.loads((data_dir / "keys.json").read_text())["keys"]
            yield Service(url, entries[0]["key"], entries[1]["key"])
        finally:
            _stop(process)


def engine_memory() -> int | None:
    """Resident bytes of the engine's process of a service below this one; None if there is none."""
    for pid in descendants():
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(_ENGINE_TITLE):
                pages = int((folder / "statm").read_text().split()[1])
                return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    printed = output.read_text(errors="replace").strip()[-500:]
    raise BenchError(f"the service does not start: {printed or 'it printed nothing'}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)
