"""Where the SDK finds its key, and where it must not look."""

import json
from pathlib import Path

import httpx
import pytest

from cogrpo_client.keys import find_api_key

LOCAL = httpx.URL("http://127.0.0.1:8000")
REMOTE = httpx.URL("https://pictures.example")


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("COGRPO_API_KEY", "COGRPO_KEY_FILE", "COGRPO_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [
        {"id": "other", "key": "key-other", "scopes": ["other"]},
        {"id": "default", "key": "key-generate", "scopes": ["generate"]},
    ]
    path.write_text(json.dumps({"keys": keys}) if text is None else text)


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("data/keys.json"))
    monkeypatch.setenv("COGRPO_API_KEY", "key-environment")
    assert find_api_key(LOCAL) == find_api_key(REMOTE) == "key-environment"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.8.8"])
def test_a_local_service_has_its_key_file(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = httpx.URL(f"http://{host}:8000")
    assert find_api_key(url) is None
    write(Path("data/keys.json"))
    assert find_api_key(url) == "key-generate"
    assert find_api_key(url, scope="other") == "key-other"
    monkeypatch.setenv("COGRPO_DATA_DIR", "elsewhere")
    assert find_api_key(url) is None
    write(Path("elsewhere/keys.json"))
    assert find_api_key(url) == "key-generate"
    monkeypatch.setenv("COGRPO_KEY_FILE", "missing.json")
    assert find_api_key(url) is None


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "0.0.0.0", "127.0.0.1.evil.example"])
def test_a_remote_service_never_gets_the_key_of_this_machine(host: str) -> None:
    write(Path("data/keys.json"))
    assert find_api_key(httpx.URL(f"http://{host}:8000")) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 3}', '{"keys": [{"id": "a"}]}', "\0"])
def test_a_damaged_key_file_is_no_key(text: str) -> None:
    write(Path("data/keys.json"), text)
    assert find_api_key(LOCAL) is None
