"""An environment of its own for a reward worker, from the lock file that the package ships."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cogrpo_core.rewards import load

LOCKS = Path(load.__file__).parent / "locks"
STAMP = "installed-from"
SECONDS = 3600.0
_ERROR = re.compile(r"\berror:", re.IGNORECASE)


class InstallError(ValueError):
    """An environment that cannot be made, in one line."""


def locked() -> list[str]:
    """The rewards that have an environment of their own."""
    return sorted(path.stem for path in LOCKS.glob("*.txt"))


def install(lock: Path, environment: Path) -> bool:
    """Makes the environment of a lock file; gives whether there was anything to do.

    One that is there from the same file stays; one from another file, or half made, is made anew.
    Raises `InstallError`.
    """
    text = lock.read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    stamp = environment / STAMP
    if stamp.is_file() and stamp.read_text() == digest:
        return False
    if environment.exists() and not (environment / "pyvenv.cfg").is_file():
        raise InstallError(f"{environment} is there, and no environment; name another folder")
    shutil.rmtree(environment, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(environment)])
    python = environment / load.environment_python(Path()).relative_to("env")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Old packages are built with what the environment has, which must be there first.
    if match := re.search(r"^setuptools==\S+$", text, re.MULTILINE):
        _run([*pip, match[0]])
    _run([*pip, "--no-build-isolation", "--requirement", str(lock)])
    _run([str(python), "-m", "pip", "check"])
    stamp.write_text(digest)
    return True


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr + error.stdout).splitlines() if _ERROR.search(line)]
        said = "; ".join(" ".join(line.split()) for line in lines or ["no message"])[:300]
        raise InstallError(f"{' '.join(command[1:4])} failed: {said}") from None
    except subprocess.TimeoutExpired:
        raise InstallError(f"{' '.join(command[1:4])} took more than {SECONDS:g} s") from None
