"""The commands `cogrpo serve` and `cogrpo trajectories`; they import Ray and torch when run."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

DataDir = Annotated[
    Path, typer.Option(envvar="COGRPO_DATA_DIR", help="Keys, logs and Redis live here.")
]
RedisPasswords = Annotated[
    Path | None,
    typer.Option(
        envvar="COGRPO_REDIS_PASSWORDS_FILE", help="Those of the users at REDIS_URL; see `secrets`."
    ),
]


def serve(
    port: Annotated[int, typer.Option(envvar="PORT", min=1, max=65535)] = 8000,
    model: Annotated[str, typer.Option(help="Embedded name, folder or Hub id.")] = "shapes",
    data_dir: DataDir = Path("data"),
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Of the weights; bfloat16 on a GPU and float32 without by default."),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Steps as compiled graphs: the first start takes minutes."),
    ] = False,
    decode_tile: Annotated[
        int | None,
        typer.Option(min=8, help="Decode larger pictures in tiles of so many tokens a side."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="CPU threads of an engine; all cores by default."),
    ] = None,
    single_process: Annotated[
        bool, typer.Option("--single-process", help="Without Ray, for development.")
    ] = False,
    replicas: Annotated[
        int, typer.Option(min=1, max=64, help="Engines, each with its own model.")
    ] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, max=64, help="Engines under load; no more by default.")
    ] = None,
    slots: Annotated[
        int, typer.Option(min=1, max=256, help="Pictures that an engine makes at once.")
    ] = 8,
    queued_cost: Annotated[
        int, typer.Option(min=1, help="Steps of pictures that wait and run at an engine.")
    ] = 20_000,
    retention_days: Annotated[
        float | None, typer.Option(help="Days that trajectories are kept; for good by default.")
    ] = None,
    spool_mb: Annotated[
        int, typer.Option(min=1, help="Trajectories on an engine's disk while Redis is away.")
    ] = 256,
    policies: Annotated[
        str | None, typer.Option(help="Registry of policies; a folder of the data folder else.")
    ] = None,
    canary_share: Annotated[
        float, typer.Option(min=0, max=1, help="Requests that a challenger gets at first.")
    ] = 0.0,
    trainer: Annotated[
        bool, typer.Option("--trainer/--no-trainer", help="Learn from what is served.")
    ] = True,
    trainer_threads: Annotated[
        int, typer.Option(min=1, max=256, help="CPU threads of the trainer.")
    ] = 1,
    trainer_config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The trainer's TOML file.")
    ] = None,
    explore_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of requests without a seed: they try schedules.")
    ] = 0.0,
    host: Annotated[str, typer.Option(help="Beyond loopback only with --keys-file.")] = "127.0.0.1",
    keys_file: Annotated[
        Path | None, typer.Option(envvar="COGRPO_KEYS_FILE", help="Keys in place of those made.")
    ] = None,
    redis_passwords: RedisPasswords = None,
) -> None:
    """Run the service: embedded Redis, Ray Serve with its engines, and the HTTP routes.

    REDIS_URL, if set, takes the place of the embedded Redis.
    """
    from pydantic import SecretStr

    from cogrpo_server.settings import Settings, SettingsError
    from cogrpo_server.supervisor import Supervisor
    from cogrpo_server.trainer_process import is_installed

    if retention_days is not None and not 0 < retention_days < 1e5:
        raise SettingsError("--retention-days must be more than 0")
    settings = Settings(
        data_dir=data_dir.resolve(),
        host=host,
        port=port,
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        dtype=dtype,
        compiled=compiled,
        decode_tile=decode_tile,
        single_process=single_process,
        threads=threads or max(1, len(os.sched_getaffinity(0)) // max(replicas, max_replicas or 1)),
        replicas=replicas,
        max_replicas=max_replicas,
        slots=slots,
        queued_cost=queued_cost,
        retention_seconds=None if retention_days is None else 86_400 * retention_days,
        spool_bytes=spool_mb * 2**20,
        policies=str(Path(policies).resolve()) if policies and "://" not in policies else policies,
        canary_share=canary_share,
        trainer=trainer and not single_process and is_installed(),
        trainer_threads=trainer_threads,
        trainer_config=trainer_config.resolve() if trainer_config else None,
        explore_share=explore_share,
        redis_url=SecretStr(url) if (url := os.environ.get("REDIS_URL")) else None,
        redis_passwords_file=redis_passwords.resolve() if redis_passwords else None,
        keys_file=keys_file.resolve() if keys_file else None,
    )
    Supervisor(settings).run()


def trajectories(
    last: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 10,
    replay: Annotated[
        bool, typer.Option("--replay", help="Make each again and compare the tokens.")
    ] = False,
    model: Annotated[str, typer.Option(help="The model that made them.")] = "shapes",
    data_dir: DataDir = Path("data"),
    policies: Annotated[
        str | None, typer.Option(help="Registry of policies; a folder of the data folder else.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    redis_passwords: RedisPasswords = None,
) -> None:
    """Show, newest first, what a running service logged; with --replay, whether it repeats.

    Ends with status 1 when a replay gives other tokens.
    """
    from cogrpo_server.show_log import show

    url = _operator_url(data_dir, redis_passwords)
    place = policies or str(data_dir.resolve() / "policies")
    if not show(url, last, model if replay else None, policies=place, as_json=as_json):
        raise typer.Exit(1)


def forget(
    days: Annotated[float, typer.Option(min=0, max=1e5, help="What is older goes.")],
    data_dir: DataDir = Path("data"),
    redis_passwords: RedisPasswords = None,
) -> None:
    """Remove from the log what is older, and have Redis write its file without it.

    A service with --retention-days does so by itself; one on a cluster needs this, every night.
    """
    from cogrpo_core.exchange.erase import forget_older, rewrite_file
    from cogrpo_core.exchange.trajectory_log import connect

    with connect(_operator_url(data_dir, redis_passwords)) as connection:
        print(f"removed {forget_older(connection, 86_400 * days)} trajectories")
        rewrite_file(connection)


def _operator_url(data_dir: Path, redis_passwords: Path | None) -> str:
    """The log of REDIS_URL, or of the service that runs in the data folder."""
    from pydantic import SecretStr

    from cogrpo_server.settings import Settings
    from cogrpo_server.show_log import redis_url

    url = os.environ.get("REDIS_URL")
    settings = Settings(
        data_dir=data_dir.resolve(),
        redis_url=SecretStr(url) if url else None,
        redis_passwords_file=redis_passwords,
    )
    return redis_url(settings)


def secrets(
    folder: Annotated[Path, typer.Argument(help="Made with mode 0700; what is there stays.")],
) -> None:
    """Make the keys and passwords of a deployment: one file for each who needs one."""
    from cogrpo_server.secret_files import make_secrets

    for path in make_secrets(folder):
        print(path)
