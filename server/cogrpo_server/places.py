"""The places that a service takes for itself: its port, its data folder, its runtime folder."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cogrpo_server.settings import SettingsError


def check_port(host: str, port: int) -> None:
    """Raises `SettingsError` when somebody listens on the port already."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} is in use; stop what listens there or choose another with --port"
            ) from None
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from None


@contextlib.contextmanager
def locked_data_dir(data_dir: Path) -> Iterator[None]:
    """The data folder, made if need be and held for one service. Raises `SettingsError`.

    The lock is on the folder itself and ends with the process, however that ends.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SettingsError(f"the data folder {data_dir} is unusable: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise SettingsError(
            f"another service uses {data_dir}; stop it or choose another with --data-dir"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def runtime_dir(data_dir: Path) -> Path:
    """Where sockets and Ray's session of this data folder's service lie: a short, private path."""
    base = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())
    mark = hashlib.sha256(str(data_dir).encode()).hexdigest()[:10]
    return base / f"cogrpo-{os.getuid()}-{mark}"


@contextlib.contextmanager
def fresh_runtime_dir(data_dir: Path) -> Iterator[Path]:
    """The runtime folder, emptied of what a killed service left, and removed at the end.

    Only the holder of the data folder's lock may call this. Raises `SettingsError`.
    """
    folder = runtime_dir(data_dir)
    with contextlib.suppress(FileNotFoundError):
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
            raise SettingsError(f"{folder} belongs to somebody else; remove it")
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
