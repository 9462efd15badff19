"""The application in this process, with a real engine on the tiny checkpoint."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from cogrpo_server.app import create_app
from cogrpo_server.engine import Engine
from cogrpo_server.keys import ensure_keys, load_keys
from cogrpo_server.settings import Settings


async def ready(engine: Engine) -> Engine:
    """The engine once its model is loaded."""
    async with asyncio.timeout(30):
        while (status := await engine.status()).state == "loading":
            await asyncio.sleep(0.01)
    assert status.state == "ready", status.reason
    return engine


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, model=str(tiny_checkpoint))


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[Engine]:
    engine = Engine(settings, None)
    yield await ready(engine)
    engine.close()


@pytest.fixture
def keys_file(settings: Settings) -> Path:
    ensure_keys(settings.own_keys_file)
    return settings.own_keys_file


@pytest.fixture
def api_keys(keys_file: Path) -> dict[str, str]:
    """The key of each id."""
    return {entry["id"]: entry["key"] for entry in json.loads(keys_file.read_text())["keys"]}


@pytest.fixture
def app(engine: Engine, keys_file: Path) -> FastAPI:
    return create_app(engine, load_keys(keys_file))


@pytest.fixture
async def http(app: FastAPI, api_keys: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application that holds the key to generate."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://test",
        headers={"Authorization": f"Bearer {api_keys['default']}"},
        timeout=60,
    ) as client:
        yield client
