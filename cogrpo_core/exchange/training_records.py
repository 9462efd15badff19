"""Records of what the trainer is asked for: JSON files in a folder, for several processes.

A record is replaced as a whole, and a wish to end what it is of is an empty file beside it. So a
restart of either side knows all.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from cogrpo_core.durable import replace_whole, sync

RunStatus: TypeAlias = Literal["queued", "running", "completed", "failed", "cancelled"]
ENDED: frozenset[RunStatus] = frozenset({"completed", "failed", "cancelled"})
"""What nothing comes after."""

_LOCK_SECONDS = 5.0

Record = TypeVar("Record", bound=BaseModel)


class TrainingAwayError(ValueError):
    """What is kept of training cannot be read or written."""


class ReusedKeyError(ValueError):
    """The idempotency key came before with another request."""


class TrainingRecords(Generic[Record]):
    """The records of one kind in a folder, by name. Raises `TrainingAwayError`."""

    def __init__(self, folder: Path, kind: type[Record], is_name: Callable[[str], bool]) -> None:
        """`folder` is made when something is first written; what is no name leads nowhere."""
        self._folder = folder
        self._kind = kind
        self._is_name = is_name

    def names(self) -> list[str]:
        """In falling order."""
        found = (path.stem for path in self._folder.glob("*.json"))
        return sorted(filter(self._is_name, found), reverse=True)

    def get(self, name: str) -> Record | None:
        """One record, or None for a name that is unknown or none."""
        if not self._is_name(name):
            return None
        path = self._path(name)
        with away():
            try:
                return self._kind.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                return None
            except ValidationError as error:
                fault = error.errors(include_input=False, include_url=False)[0]
                raise TrainingAwayError(
                    f"the record {path.parent.name}/{path.name} of the training folder is damaged "
                    f"({fault['msg']}); restore it or remove it"
                ) from None

    def all(self) -> list[Record]:
        """All of them, by falling names."""
        with away():
            found = [self.get(name) for name in self.names()]
        return [record for record in found if record is not None]

    def write(self, name: str, record: Record) -> None:
        """Puts a record in the place of the one before; it is durable when this returns."""
        with away():
            self._make_folder()
            replace_whole(self._path(name), record.model_dump_json(indent=1).encode())
            sync(self._folder)

    def remove(self, name: str) -> None:
        """Gives a record up, and the wish to end what it is of."""
        with away():
            self._path(name).unlink(missing_ok=True)
            self._wish(name).unlink(missing_ok=True)

    def go_on(self, name: str) -> None:
        """Takes back a wish to end it."""
        with away():
            self._wish(name).unlink(missing_ok=True)

    def cancel(self, name: str) -> None:
        """Asks the trainer to end it."""
        if self._is_name(name):
            with away():
                self._make_folder()
                self._wish(name).touch()

    def is_cancelled(self, name: str) -> bool:
        """Whether somebody asked for its end."""
        return self._wish(name).exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For who looks first and writes then."""
        with away():
            self._make_folder()
            descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if not flocked(descriptor, fcntl.LOCK_EX, _LOCK_SECONDS):
                    raise TrainingAwayError(
                        f"the lock of {self._folder.name} was held for {_LOCK_SECONDS:g} s"
                    )
                yield
            finally:
                os.close(descriptor)

    def _make_folder(self) -> None:
        make_private(self._folder.parent)
        make_private(self._folder)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _wish(self, name: str) -> Path:
        return self._folder / f"{name}.cancel"


def make_private(folder: Path) -> None:
    """Makes a folder that others cannot read, if it is not there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def flocked(descriptor: int, kind: int, seconds: float) -> bool:
    """Locks a file that is open; False where another held it all the time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)


@contextlib.contextmanager
def away() -> Iterator[None]:
    """What the disk refuses becomes a `TrainingAwayError`."""
    try:
        yield
    except OSError as error:
        raise TrainingAwayError(f"the training folder cannot be used ({error.strerror})") from error
