"""The trainer as a child process: `cogrpo trainer` on the same data folder, kept alive.

It is no part of Ray: its own nice level, threads and memory bound what it takes from serving, its
death takes nothing with it, and all that both sides tell each other lies on disk and in Redis.
"""

import importlib.util
import os
import subprocess
import sys
import time

from cogrpo_server.processes import die_with_parent, end_child
from cogrpo_server.settings import Settings

STOP_SECONDS = 5.0
"""After that it is killed: a cycle under way goes on from its last state at the next start."""
LONGEST_DELAY = 60.0


def is_installed() -> bool:
    """Whether what the trainer needs is there."""
    return all(importlib.util.find_spec(name) for name in ("cogrpo_trainer", "peft"))


class TrainerProcess:
    """One child process; `keep` starts it again when it has died, each time a little later."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._next_start = 0.0
        self._delay = 1.0

    def keep(self) -> bool:
        """Sees that it runs; True when it had died and was started again."""
        if self._process is not None and self._process.poll() is None:
            return False
        if time.monotonic() < self._next_start:
            return False
        died = self._process is not None
        self._next_start = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        self._start()
        return died

    def stop(self) -> None:
        """Ends it; bounded."""
        if self._process is None:
            return
        end_child(self._process, STOP_SECONDS)
        self._process = None

    def _start(self) -> None:
        settings = self._settings
        options = ["--data-dir", str(settings.data_dir), "--model", settings.model]
        options += ["--policies", settings.policies_place]
        options += ["--threads", str(settings.trainer_threads)]
        if settings.trainer_config is not None:
            options += ["--config", str(settings.trainer_config)]
        # Its own user at Redis stands in the data folder, where a given Redis has users too.
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        with (settings.logs_dir / "trainer-output.log").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cogrpo_trainer.daemon", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C at the terminal is for the supervisor
                preexec_fn=die_with_parent,
            )
