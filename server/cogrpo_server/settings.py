"""All settings of the service; `cli.py` fills them from options and the environment."""

import ipaddress
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from cogrpo_core.exchange.policy_registry import PolicyRegistry, RegistryError

DEFAULT_PORT = 8000
DEFAULT_MODEL = "shapes"
BODY_BYTES = 64 * 1024
BODY_SECONDS = 30.0


Dtype: TypeAlias = Literal["float32", "bfloat16"]


class SettingsError(ValueError):
    """A setting that cannot be used, or a place that is taken."""


class Settings(BaseModel):
    """How one service runs. Paths are absolute, times are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)
    model: str = DEFAULT_MODEL
    dtype: Dtype | None = Field(
        default=None, description="Of the weights; None is float32 on a CPU, else bfloat16."
    )
    compiled: bool = Field(default=False, description="Steps as compiled graphs.")
    decode_tile: int | None = Field(
        default=None, ge=8, description="Tokens a side of what is decoded at once."
    )
    single_process: bool = Field(default=False, description="uvicorn here in place of Ray Serve.")
    threads: int = Field(default=1, ge=1, le=256)
    redis_url: SecretStr | None = None
    redis_passwords_file: Path | None = Field(
        default=None, description="Those of the users of `redis_url`, which then names none."
    )
    keys_file: Path | None = None
    replicas: int = Field(default=1, ge=1, le=64, description="Engines, each with its own model.")
    max_replicas: int | None = Field(
        default=None, ge=1, le=64, description="How many there are under load; None: no more."
    )
    queued_requests: int = Field(
        default=256, ge=1, description="Accepted and not yet answered, of each engine."
    )
    slots: int = Field(
        default=8, ge=1, le=256, description="Pictures under way at once, of each engine."
    )
    queued_cost: int = Field(
        default=20_000,
        ge=1,
        description="Steps of pictures that are accepted and not yet done, of each engine.",
    )
    images_times_steps: int = Field(
        default=512, ge=1, description="The most that one request costs."
    )
    policies: str | None = Field(
        default=None, description="The registry's folder or URL; None: in the data folder."
    )
    canary_share: float = Field(
        default=0.0, ge=0, le=1, description="Requests for the challenger, until somebody says."
    )
    request_seconds: float = Field(
        default=120.0, gt=0, description="From acceptance to the answer."
    )
    start_seconds: float = Field(default=300.0, gt=0, description="Until the model must be ready.")
    retention_seconds: float | None = Field(
        default=None, gt=0, description="Trajectories older than this go; None keeps them."
    )
    spool_bytes: int = Field(
        default=256 * 2**20,
        ge=2**20,
        description="Trajectories on disk while Redis is away, of each engine.",
    )
    trainer: bool = Field(default=False, description="A trainer runs beside the engines.")
    trainer_threads: int = Field(default=1, ge=1, le=256)
    trainer_config: Path | None = None
    explore_share: float = Field(
        default=0.0, ge=0, le=1, description="Of requests whose learned schedule may be tried out."
    )
    stop_seconds: float = Field(default=30.0, gt=0, description="After that everything is killed.")

    @property
    def most_replicas(self) -> int:
        """How many engines there can be at once."""
        return self.max_replicas or self.replicas

    @property
    def policies_place(self) -> str:
        """Where the registry of policy versions is."""
        return self.policies or str(self.data_dir / "policies")

    @property
    def logs_dir(self) -> Path:
        """Where the processes write their rotating logs."""
        return self.data_dir / "logs"

    @property
    def redis_url_file(self) -> Path:
        """Where other processes of this machine find the Redis of a running service; mode 0600."""
        return self.data_dir / "redis.url"

    @property
    def trainer_url_file(self) -> Path:
        """The same for the trainer, which may less; mode 0600."""
        return self.data_dir / "redis-trainer.url"

    @property
    def spool_dir(self) -> Path:
        """Where trajectories wait while Redis is away."""
        return self.data_dir / "spool"

    @property
    def training_dir(self) -> Path:
        """Where the trainer keeps its cycles and their states."""
        return self.data_dir / "training"

    @property
    def own_keys_file(self) -> Path:
        """The keys that the service makes for itself; mode 0600."""
        return self.data_dir / "keys.json"

    def check_model(self) -> None:
        """What can be seen of a model's folder without loading it. Raises `SettingsError`."""
        folder = Path(self.model)
        if folder.is_dir() and not (folder / "model_index.json").is_file():
            raise SettingsError(f"{folder} is no checkpoint folder: it has no model_index.json")

    def check_policies(self) -> None:
        """That the registry's place can be opened. Raises `SettingsError`."""
        try:
            PolicyRegistry(self.policies_place).aliases()
        except RegistryError as error:
            raise SettingsError(f"--policies: {error}") from None

    def check_replicas(self) -> None:
        """That the numbers go together. Raises `SettingsError`."""
        if self.most_replicas < self.replicas:
            raise SettingsError(
                f"--max-replicas {self.max_replicas} is less than --replicas {self.replicas}"
            )
        if self.single_process and self.most_replicas > 1:
            raise SettingsError("one process has one replica: leave --single-process out")
        if self.queued_cost < self.images_times_steps:
            raise SettingsError(
                f"--queued-cost must be at least {self.images_times_steps}, which one request may "
                "cost"
            )

    def check_redis_passwords(self) -> None:
        """They are for a Redis that was given. Raises `SettingsError`."""
        if self.redis_passwords_file is not None and self.redis_url is None:
            raise SettingsError("--redis-passwords goes with REDIS_URL: set that too")

    def check_host(self) -> None:
        """Beyond loopback only with keys that somebody configured. Raises `SettingsError`."""
        try:
            loopback = self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            raise SettingsError("the host must be an IP address or localhost") from None
        if not loopback and self.keys_file is None:
            raise SettingsError(
                f"host {self.host} is reachable from other machines: give --keys-file too, "
                "or leave --host out"
            )
