"""Several learners that share each batch, under Ray Train: data-parallel, one process a learner."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cogrpo_core.rewards.composite import Composite
from cogrpo_trainer.train.config import TrainConfig
from cogrpo_trainer.train.fleet import Fleet
from cogrpo_trainer.train.run import Iteration, Trainer


def train_distributed(
    config: TrainConfig, folder: Path, make_composite: Callable[[], Composite]
) -> None:
    """Runs to the end on `config.workers` learners; the first of them saves into `folder`.

    Each makes and scores the rollouts of its share of the groups; gradients are averaged, so that
    an update is that of one learner with the whole batch. Raises RuntimeError when a learner fails.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    has_gpu = torch.cuda.is_available()
    loop = TorchTrainer(
        _learn,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "folder": str(folder),
            "make_composite": make_composite,
            "threads": max(1, torch.get_num_threads() // config.workers),
        },
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=has_gpu),
        run_config=RunConfig(storage_path=str((folder / "ray").resolve()), name="learners"),
    )
    try:
        loop.fit()
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:500]
        raise RuntimeError(f"a learner failed ({reason}); its last state is whole") from None


def _learn(settings: dict[str, Any]) -> None:
    """One learner, in the process that Ray Train started for it."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(settings["threads"])
    context = ray.train.get_context()
    fleet = Fleet(context.get_world_rank(), context.get_world_size())
    trainer = Trainer(
        TrainConfig.model_validate(settings["config"]),
        Path(settings["folder"]),
        settings["make_composite"](),
        fleet=fleet,
        device=ray.train.torch.get_device(),
    )

    def report(done: Iteration) -> None:
        means = {name: float(values.mean()) for name, values in done.scores.by_reward.items()}
        ray.train.report({"iteration": done.place.iteration, **means})

    trainer.run(report)
