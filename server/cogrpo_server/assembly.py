"""The parts that Ray Serve's processes and the single process put together alike."""

from fastapi import FastAPI

from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_core.exchange.spool import Spool
from cogrpo_core.exchange.training_cycles import Cycles
from cogrpo_core.exchange.trajectory_log import TrajectoryWriter, connect
from cogrpo_server.app import create_app
from cogrpo_server.drain import DrainSwitch
from cogrpo_server.evaluations import PolicyEvaluations
from cogrpo_server.jobs import Backend
from cogrpo_server.keys import load_keys
from cogrpo_server.logged import Logged
from cogrpo_server.metrics_training import TrainingMetrics
from cogrpo_server.policies import Policies
from cogrpo_server.redis_process import RedisUrls
from cogrpo_server.routes_training import training_routes
from cogrpo_server.settings import Settings
from cogrpo_server.shelf import Shelf
from cogrpo_server.telemetry import Telemetry


def make_app(
    backend: Backend, settings: Settings, urls: RedisUrls, telemetry: Telemetry
) -> FastAPI:
    """The HTTP application, connected to Redis. Raises `SettingsError` for a bad key file."""
    cycles = Cycles(settings.training_dir)
    TrainingMetrics(telemetry.registry, cycles)
    return create_app(
        backend,
        load_keys(settings.keys_file or settings.own_keys_file),
        shelf=Shelf(urls.shelf),
        logged=Logged(urls.operator),
        telemetry=telemetry,
        drain=DrainSwitch(urls.shelf),
        policies=Policies(
            PolicyRegistry(settings.policies_place),
            default_share=settings.canary_share,
            announce_url=urls.shelf,
            evaluations=PolicyEvaluations(settings.training_dir, has_trainer=settings.trainer),
        ),
        training=training_routes(cycles, has_trainer=settings.trainer),
    )


def make_writer(settings: Settings, url: str) -> TrajectoryWriter:
    """The log's writer, with its spool on disk."""
    spool = Spool(
        settings.spool_dir,
        max_bytes=settings.spool_bytes,
        keep_seconds=settings.retention_seconds,
    )
    return TrajectoryWriter(connect(url), spool=spool)
