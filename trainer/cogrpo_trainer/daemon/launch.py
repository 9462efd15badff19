"""The daemon as a process: its budget, its log, its signals, and what it loads for a cycle."""

import hashlib
import logging
import os
import signal
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_trainer.daemon.config import DaemonConfig
from cogrpo_trainer.daemon.daemon import Daemon, Links

if TYPE_CHECKING:
    from cogrpo_trainer.daemon.cycle import CycleRunner

_LOG_BYTES = 5 * 2**20


def launch(
    config: DaemonConfig,
    data_dir: Path,
    redis_url: str,
    *,
    policies: str,
    threads: int,
    niceness: int,
    gpu_share: float,
) -> None:
    """Runs until SIGTERM or SIGINT. Raises `TrainingAwayError` where another trainer is at work."""
    os.nice(niceness)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    training_dir = data_dir / "training"
    _write_log(data_dir / "logs" / "trainer.log")

    def make_runner(links: Links) -> "CycleRunner":
        return _runner(config, data_dir, links, threads=threads, gpu_share=gpu_share)

    mark = hashlib.sha256(str(data_dir).encode()).hexdigest()[:10]
    daemon = Daemon(
        config,
        training_dir,
        redis_url,
        make_runner,
        registry=PolicyRegistry(policies),
        name=f"trainer-{mark}",
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    daemon.run()


def _runner(
    config: DaemonConfig,
    data_dir: Path,
    links: Links,
    *,
    threads: int,
    gpu_share: float,
) -> "CycleRunner":
    import torch

    from cogrpo_core.models.checkpoint import load_checkpoint
    from cogrpo_core.rewards.load import HELD_OUT
    from cogrpo_trainer.daemon.config import EMBEDDED
    from cogrpo_trainer.daemon.cycle import CycleRunner
    from cogrpo_trainer.device import best_device
    from cogrpo_trainer.measure import scorers
    from cogrpo_trainer.train.launch import make_composite

    torch.set_num_threads(threads)
    device = best_device()
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(gpu_share)
    train = config.train
    held_out = sorted(HELD_OUT) if train.model == EMBEDDED else []
    return CycleRunner(
        config,
        data_dir / "training",
        base=load_checkpoint(train.model, device=device),
        registry=links.registry,
        cycles=links.cycles,
        connection=links.connection,
        consumer=links.consumer,
        ledger=links.ledger,
        trained=make_composite(train, device),
        measured=scorers(dict.fromkeys([*train.rewards, *held_out]), train.reward_timeout_s),
        stopping=links.stopping,
    )


def _write_log(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=2, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("cogrpo_trainer", "cogrpo_core"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
