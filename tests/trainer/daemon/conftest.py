"""Parts that the daemon's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_core.exchange.trajectory_log import connect
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from tests.conftest import RedisServer


@pytest.fixture
def connection(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with connect(redis_server.url) as connection:
        yield connection


@pytest.fixture(scope="session")
def pipe(tiny_checkpoint: Path) -> CoGRPOPipeline:
    """The model as it serves before anything was learned."""
    return CoGRPOPipeline.from_pretrained(tiny_checkpoint)


@pytest.fixture
def model(pipe: CoGRPOPipeline) -> Checkpoint:
    return pipe.checkpoint


@pytest.fixture
def registry(tmp_path: Path) -> PolicyRegistry:
    return PolicyRegistry(tmp_path / "policies")
