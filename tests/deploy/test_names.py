"""What deploy/ and docs/operations.md name exists: variables, commands, options, files, images."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cogrpo_client.cli import build_app
from cogrpo_server.secret_files import make_secrets
from tests.deploy.conftest import DEPLOY

ROOT = DEPLOY.parent
PAGE = ROOT / "docs" / "operations.md"
PACKAGES = ("cogrpo_core", "server/cogrpo_server", "trainer/cogrpo_trainer", "client/cogrpo_client")
VARIABLE = re.compile(r"\b(?:COGRPO|HF|MALLOC|OMP|RAY|REDIS|TRITON)_[A-Za-z_]+\b")
OF_HUGGING_FACE = {"HF_HOME", "HF_TOKEN"}


def files() -> list[Path]:
    found = [path for path in DEPLOY.rglob("*") if path.is_file() and "secrets" not in path.parts]
    return [path for path in found if path.suffix != ".pyc"] + [PAGE]


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def kustomization() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "kustomization.yaml").read_text()))


def within(node: object, name: str) -> Iterator[Any]:
    """Every value under a key of this name, at any depth."""
    if isinstance(node, dict):
        if name in node:
            yield node[name]
        for value in node.values():
            yield from within(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from within(value, name)


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Strings and keywords of the code: an environment variable is one or the other there."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.keyword) and node.arg:
                    found.add(node.arg)
    return found


def test_variables_exist(known: set[str]) -> None:
    named = {name for path in files() for name in VARIABLE.findall(path.read_text())}
    assert {"REDIS_URL", "COGRPO_DATA_DIR"} <= named
    assert named - known - OF_HUGGING_FACE == set()


def test_containers_get_variables_that_exist(known: set[str]) -> None:
    given = set(compose()["services"]["service"]["environment"])
    for variables in within(list(manifests()), "env"):
        given |= {one["name"] for one in variables}
    text = (DEPLOY / "Dockerfile").read_text()
    given |= set(re.findall(r"^(?:ENV| {4}) ?(COGRPO_\w+|PORT)=", text, re.MULTILINE))
    assert "PORT" in given and len(given) >= 5
    assert given <= known


def options_of(command: str) -> set[str]:
    """Of a sub-command of `cogrpo`."""
    built: Any = typer.main.get_command(build_app(command))
    parameters = built.commands[command].params
    return {option for one in parameters for option in (*one.opts, *one.secondary_opts)}


def cogrpo_calls() -> Iterator[list[str]]:
    """The words after `cogrpo`, wherever it is called."""
    for name in ("service", "trainer"):
        yield compose()["services"][name]["command"]
    yield from within(list(manifests()), "args")
    for line in PAGE.read_text().splitlines():
        for call in re.findall(r"\bcogrpo ((?:[a-z]+)(?: [^`|;&]+)?)", line):
            if call.split()[0] in commands():
                yield shlex.split(call, comments=True)


def commands() -> set[str]:
    return {point.name for point in entry_points(group="cogrpo.commands")}


def test_calls_of_cogrpo_have_commands_and_options_that_exist() -> None:
    checked = set()
    for command, *words in (call for call in cogrpo_calls() if isinstance(call, list)):
        assert command in commands()
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in options_of(command), (command, word)
        checked.add(command)
    assert checked >= {"forget", "secrets", "serve", "trainer"}


def test_options_named_alone_exist() -> None:
    every = set().union(*(options_of(command) for command in commands()))
    named = set(re.findall(r"`(--[a-z-]+)[^`]*`", PAGE.read_text()))
    assert "--retention-days" in named
    assert named <= every


def test_secrets_are_those_that_are_made(tmp_path: Path) -> None:
    made = {path.name for path in make_secrets(tmp_path)}
    given = {Path(secret["file"]).name for secret in compose()["secrets"].values()}
    for one in kustomization()["secretGenerator"]:
        given |= {Path(file).name for file in one["files"]}
    assert given == made
    used = {
        name for service in compose()["services"].values() for name in service.get("secrets", [])
    }
    assert used == set(compose()["secrets"])


def test_paths_of_secrets_are_where_they_are_mounted() -> None:
    text = "".join(path.read_text() for path in files())
    named = set(re.findall(r"/run/secrets/(?:cogrpo/)?([\w.-]+\.\w+)", text))
    assert named == set(compose()["secrets"])


def test_kustomize_has_what_it_names() -> None:
    assert sorted(kustomization()["resources"]) == sorted(
        f"kubernetes/{path.name}" for path in (DEPLOY / "kubernetes").glob("*.yaml")
    )
    generated = {
        *(one["name"] for one in kustomization()["secretGenerator"]),
        *(one["name"] for one in kustomization()["configMapGenerator"]),
    }
    for one in kustomization()["configMapGenerator"]:
        assert all((DEPLOY / file).is_file() for file in one["files"])
    pods = list(manifests())
    used = {volume["secretName"] for volume in within(pods, "secret")}
    used |= {volume["name"] for volume in within(pods, "configMap")}
    assert used == generated


def test_network_policies_name_parts_that_exist() -> None:
    everything = list(manifests())
    policies = [one for one in everything if one["kind"] == "NetworkPolicy"]
    parts = {
        labels["part"]
        for one in everything
        if one not in policies
        for labels in within(one, "labels")
        if "part" in labels
    }
    named = {
        value
        for expressions in within(policies, "matchExpressions")
        for expression in expressions
        for value in expression["values"]
    } | {labels["part"] for labels in within(policies, "matchLabels") if "part" in labels}
    assert named == parts == {"head", "engine", "redis", "retention"}


def test_the_image_is_made_of_what_there_is() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied: set[str] = set()
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            copied |= set(line.split()[1:-1])
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_compose_mounts_what_there_is() -> None:
    for service in compose()["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("$"):
                assert source in compose()["volumes"]


def test_one_image_everywhere() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    images = [*within(list(manifests()), "image")]
    images += [service["image"] for service in compose()["services"].values()]
    ours = {image for image in images if image.startswith("cogrpo:")}
    assert ours == {f"cogrpo:{version.group(1)}"}
    base = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for image in {*images, *base}:
        assert re.search(r":v?\d+\.\d+\.\d+", image), f"{image} is not pinned"
    redis = {image for image in images if image.startswith("redis:")}
    assert len(redis) == 1
