"""The Ray Serve application: an ingress with the routes, and one replica of the engine.

Importing this module imports Ray; only the supervisor and Ray's own workers do.
"""

import asyncio

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cogrpo_core.allocator import ALLOCATOR
from cogrpo_core.exchange.trajectory_log import TrajectoryWriter, connect
from cogrpo_server.app import create_app
from cogrpo_server.engine import Engine
from cogrpo_server.jobs import EngineStatus, Job, Made, Refused
from cogrpo_server.keys import load_keys
from cogrpo_server.logs import write_log
from cogrpo_server.settings import Settings

APP_NAME = "cogrpo"
ENGINE_NAME = "Engine"
_STATUS_SECONDS = 5.0


class EngineReplica:
    """An engine in a process of its own."""

    def __init__(self, settings: Settings, redis_url: str, device: str) -> None:
        write_log(settings.logs_dir / "engine.log")
        self._engine = Engine(settings, TrajectoryWriter(connect(redis_url)), device=device)

    async def generate(self, job: Job) -> Made | Refused:
        """See `Engine.generate`; Ray Serve cancels the call when the client goes away."""
        return await self._engine.generate(job)

    async def status(self) -> EngineStatus:
        """See `Engine.status`."""
        return await self._engine.status()

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when this fails."""
        if self._engine.is_wedged():
            raise RuntimeError("the model has finished no step for a long time")

    async def __del__(self) -> None:
        await asyncio.to_thread(self._engine.close)


class RemoteEngine:
    """The engine's replica as a `Backend`; what goes wrong on the way becomes a refusal."""

    def __init__(self, handle: DeploymentHandle, request_seconds: float) -> None:
        self._handle = handle
        self._limit = request_seconds + 15.0

    async def generate(self, job: Job) -> Made | Refused:
        """The replica's answer. A job that died with its replica may be sent again as it is."""
        try:
            async with asyncio.timeout(self._limit):
                return await self._handle.generate.remote(job)
        except TimeoutError:
            return Refused("timeout", "The engine did not answer in time.")
        except (RayError, RayServeException):
            return Refused("stopping", "The engine went away; it will be back.", retry_after=5)

    async def status(self) -> EngineStatus:
        """The replica's status, or that it does not answer."""
        try:
            async with asyncio.timeout(_STATUS_SECONDS):
                return await self._handle.status.remote()
        except (TimeoutError, RayError, RayServeException):
            return EngineStatus("loading", "the engine does not answer")


class Ingress:
    """The HTTP routes."""

    def __init__(self, settings: Settings, engine: DeploymentHandle) -> None:
        write_log(settings.logs_dir / "ingress.log")
        self._settings = settings
        self._backend = RemoteEngine(engine, settings.request_seconds)

    def __serve_build_asgi_app__(self) -> FastAPI:
        keys = load_keys(self._settings.keys_file or self._settings.own_keys_file)
        return create_app(self._backend, keys)


# The engine has its own bounded queue, and a status call must never wait in one: so many may run.
_ENGINE = serve.deployment(
    name=ENGINE_NAME,
    num_replicas=1,
    max_ongoing_requests=1000,
    health_check_period_s=10,
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.1,
)(EngineReplica)

_INGRESS = serve.deployment(
    name="Ingress",
    num_replicas=1,
    max_ongoing_requests=1000,
    graceful_shutdown_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.1,
    ray_actor_options={"num_cpus": 0},
)(serve.ingress()(Ingress))


def build(settings: Settings, redis_url: str, *, on_gpu: bool) -> serve.Application:
    """The application graph; on a CPU the engine's process gets an allocator for large tensors."""
    threads = str(settings.threads)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if not on_gpu:
        environment |= ALLOCATOR
    options = {
        "num_cpus": 1,
        "num_gpus": 1 if on_gpu else 0,
        "runtime_env": {"env_vars": environment},
    }
    engine = _ENGINE.options(ray_actor_options=options).bind(
        settings, redis_url, "cuda" if on_gpu else "cpu"
    )
    return _INGRESS.bind(settings, engine)
