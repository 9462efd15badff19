"""What installing promises: a light client and command, and a complete tested set of versions."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
HEAVY = {"diffusers", "matplotlib", "numpy", "ray", "redis", "scipy", "torch", "transformers"}
CUDA = ("cuda-", "nvidia-")
OURS = {"cogrpo_core", "cogrpo_server", "cogrpo_trainer"}


def modules_after(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after running `code`."""
    report = "\nimport sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code + report],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(result.stdout.split())


def test_client_imports_nothing_heavy_and_nothing_of_ours():
    modules = modules_after("import cogrpo_client")
    assert "cogrpo_client" in modules
    assert not modules & (HEAVY | OURS)


def test_help_of_the_command_imports_nothing_heavy():
    code = """
import sys
from cogrpo_client.cli import main
sys.argv = ["cogrpo", "--help"]
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
"""
    modules = modules_after(code)
    assert "cogrpo_client" in modules
    assert not modules & HEAVY


def test_sub_commands_are_found_through_entry_points():
    names = {point.name for point in metadata.entry_points(group="cogrpo.commands")}
    assert names >= {"evaluate", "generate", "pretrain", "serve"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_closure(name: str, extras: set[str]) -> set[str]:
    """Names of every installed distribution that `name[extras]` needs, itself left out."""
    seen: dict[str, set[str]] = {}

    def visit(name: str, extras: set[str]) -> None:
        done = seen.setdefault(normal(name), set())
        new = (extras | {""}) - done
        done |= new
        for line in metadata.distribution(name).requires or [] if new else []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in new):
                visit(requirement.name, set(requirement.extras))

    visit(name, extras)
    return set(seen) - {normal(name)}


def test_constraints_pin_all_that_is_installed():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins), pins
    pinned = {normal(pin.partition("==")[0]) for pin in pins}
    assert len(pinned) == len(pins)
    # torch's CUDA builds name their own libraries, with exact versions.
    of_torch = {name for name in installed_closure("torch", set()) if name.startswith(CUDA)}
    needed = installed_closure("cogrpo", {"dev"}) - of_torch
    assert needed <= pinned, sorted(needed - pinned)
