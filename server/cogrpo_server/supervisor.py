"""`cogrpo serve`: starts Redis, Ray and the application, watches them, and stops all of it."""

import contextlib
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cogrpo_core.exchange.erase import forget_older
from cogrpo_core.exchange.trajectory_log import TrajectoryLogError, connect
from cogrpo_server.banner import banner
from cogrpo_server.drain import forget_draining
from cogrpo_server.keys import ensure_keys, load_keys, write_private
from cogrpo_server.places import check_port, fresh_runtime_dir, locked_data_dir
from cogrpo_server.processes import adopt_orphans, kill_descendants
from cogrpo_server.ray_runtime import deploy, engine_status, start_ray, stop_ray
from cogrpo_server.redis_process import EmbeddedRedis, RedisUrls, check_redis
from cogrpo_server.settings import Settings, SettingsError
from cogrpo_server.single_process import SingleProcess
from cogrpo_server.stop_signals import StopSignals
from cogrpo_server.trainer_process import TrainerProcess

if TYPE_CHECKING:
    from cogrpo_server.jobs import EngineStatus

_WATCH_SECONDS = 1.0
_RETENTION_SECONDS = 60.0


class _Stop(Exception):
    """Somebody asked to stop while the service was starting."""


class Supervisor:
    """One service, from its first process to its last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signals = StopSignals(
            settings.stop_seconds, lambda: self._say("stopping ..."), self._kill
        )
        self._runtime_dir: Path | None = None
        self._trainer = TrainerProcess(settings) if settings.trainer else None

    def run(self) -> None:
        """Runs until SIGINT or SIGTERM; a second signal kills everything at once.

        Raises `SettingsError` when the service cannot be started.
        """
        settings = self._settings
        settings.check_host()
        settings.check_replicas()
        settings.check_redis_passwords()
        settings.check_model()
        settings.check_policies()
        check_port(settings.host, settings.port)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked_data_dir(settings.data_dir))
            stack.enter_context(self._signals.installed())
            self._runtime_dir = stack.enter_context(fresh_runtime_dir(settings.data_dir))
            adopt_orphans()
            stack.callback(kill_descendants)
            try:
                redis, urls = self._start_redis(stack)
                stack.callback(settings.trainer_url_file.unlink, missing_ok=True)
                write_private(settings.trainer_url_file, urls.trainer + "\n")
                self._start_service(stack, urls)
                if self._trainer is not None:
                    stack.callback(self._trainer.stop)
                self._watch(redis, urls)
            except _Stop:
                pass
            finally:
                self._signals.begin_the_end()
        self._say("stopped")

    def _start_redis(self, stack: contextlib.ExitStack) -> tuple[EmbeddedRedis | None, RedisUrls]:
        """The embedded Redis, or None where REDIS_URL names another; and where its users are."""
        if self._settings.redis_url is not None:
            urls = RedisUrls.given(self._settings)
            check_redis(urls)
            return None, urls
        assert self._runtime_dir is not None
        redis = EmbeddedRedis(self._settings, self._runtime_dir)
        stack.callback(redis.stop)
        redis.start()
        forget_draining(redis.urls.shelf)
        return redis, redis.urls

    def _start_service(self, stack: contextlib.ExitStack, urls: RedisUrls) -> None:
        settings = self._settings
        keys_file = settings.keys_file
        if keys_file is None:
            keys_file = settings.own_keys_file
            ensure_keys(keys_file)
        load_keys(keys_file)
        self._say("starting; this takes some seconds ...")
        self._leave_if_stopping()
        if settings.single_process:
            single = SingleProcess(settings, urls)
            stack.callback(single.stop)
            single.start()
            engine_status = single.status
        else:
            engine_status = self._start_on_ray(stack, urls)
        status = self._wait_until_ready(engine_status)
        assert status.info is not None
        print(banner(settings, status.info, keys_file), flush=True)

    def _start_on_ray(
        self, stack: contextlib.ExitStack, urls: RedisUrls
    ) -> "Callable[[], EngineStatus]":
        assert self._runtime_dir is not None
        stack.callback(stop_ray)
        start_ray(self._runtime_dir, self._settings.most_replicas)
        self._signals.install()  # Ray has put its own in their place
        self._leave_if_stopping()
        deploy(self._settings, urls)
        return engine_status

    def _wait_until_ready(self, engine_status: "Callable[[], EngineStatus]") -> "EngineStatus":
        deadline = time.monotonic() + self._settings.start_seconds
        while time.monotonic() < deadline:
            self._leave_if_stopping()
            status = engine_status()
            if status.state == "failed":
                raise SettingsError(status.reason)
            if status.state == "ready":
                self._check_over_http()
                return status
            time.sleep(0.1)
        raise SettingsError(
            f"the model was not ready after {self._settings.start_seconds:g} seconds; "
            f"{self._settings.logs_dir} may say why"
        )

    def _check_over_http(self) -> None:
        """That the proxy serves, and not only the replicas."""
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        url = f"http://{host}:{self._settings.port}/readyz"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(50):
            try:
                opener.open(url, timeout=5).close()
                return
            except urllib.error.HTTPError as error:
                if b'"draining"' in error.read(1000):  # all ingresses of a given Redis drain
                    return
                time.sleep(0.2)
            except OSError:
                time.sleep(0.2)
        raise SettingsError(f"the service does not answer on port {self._settings.port}")

    def _watch(self, redis: EmbeddedRedis | None, urls: RedisUrls) -> None:
        """Waits for the end; an embedded Redis that died comes back with its data."""
        next_forgetting = 0.0
        while not self._signals.stopping.wait(_WATCH_SECONDS):
            if time.monotonic() >= next_forgetting:
                self._forget_old(urls.operator)
                next_forgetting = time.monotonic() + _RETENTION_SECONDS
            if redis is not None and not redis.is_running():
                self._say("the embedded Redis has died; starting it again")
                try:
                    redis.start()
                except SettingsError as error:
                    self._say(str(error))
            if self._trainer is not None and self._trainer.keep():
                self._say("the trainer has died; starting it again")

    def _forget_old(self, redis_url: str) -> None:
        """Keeps the retention time; while Redis is away there is nothing to forget."""
        seconds = self._settings.retention_seconds
        if seconds is not None:
            with contextlib.suppress(TrajectoryLogError), connect(redis_url) as connection:
                forget_older(connection, seconds)

    def _leave_if_stopping(self) -> None:
        if self._signals.stopping.is_set():
            raise _Stop

    def _kill(self) -> None:
        """Waits for nothing any more; called in a thread."""
        kill_descendants(seconds=1.0)
        self._settings.redis_url_file.unlink(missing_ok=True)
        self._settings.trainer_url_file.unlink(missing_ok=True)
        if self._runtime_dir is not None:
            shutil.rmtree(self._runtime_dir, ignore_errors=True)
        os._exit(1)

    def _say(self, line: str) -> None:
        print(f"cogrpo: {line}", file=sys.stderr, flush=True)
