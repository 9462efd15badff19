"""A local Ray instance for this service alone, with its files in the runtime folder."""

import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from cogrpo_server.keys import write_private
from cogrpo_server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

LOGICAL_CPUS = 4
OBJECT_STORE_BYTES = 200 * 2**20


def start_ray(runtime_dir: Path) -> None:
    """Starts Ray's processes. They end with this one, even when it is killed."""
    token = runtime_dir / "ray.token"
    write_private(token, secrets.token_hex(32))
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_BACKEND_LOG_LEVEL="fatal",
        RAY_worker_niceness="0",  # 15 by default, which starves a service on a busy machine
        RAY_ROTATION_MAX_BYTES=str(2**20),
        RAY_ROTATION_BACKUP_COUNT="1",
        RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH="cogrpo_server.security.proxy_middlewares",
    )
    os.environ.pop("RAY_ADDRESS", None)  # never somebody else's cluster
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(runtime_dir / "ray"),
    )


def deploy(settings: Settings, redis_url: str) -> "DeploymentHandle":
    """Starts proxy, ingress and engine on `settings.host` and `port`; gives the engine's handle."""
    import ray
    from ray import serve

    from cogrpo_server.deployments import APP_NAME, ENGINE_NAME, build

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.host, "port": settings.port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    on_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    try:
        serve.run(build(settings, redis_url, on_gpu=on_gpu), name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        raise SettingsError(
            f"Ray Serve could not start the service; {settings.logs_dir} may say why"
        ) from error
    return serve.get_deployment_handle(ENGINE_NAME, app_name=APP_NAME)


def stop_ray() -> None:
    """Stops replicas, then all of Ray's processes."""
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()
