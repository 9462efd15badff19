"""The rewards of logged pictures against those of another version's, of the same prompts and seeds.

Shape letters: B pictures, T steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cogrpo_core.exchange.entry import Entry
from cogrpo_core.exchange.policy_follower import load_tried
from cogrpo_core.exchange.policy_manifest import Json
from cogrpo_core.exchange.policy_registry import PolicyRegistry
from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.pipeline import CoGRPOPipeline
from cogrpo_core.rewards.composite import Composite
from cogrpo_core.schedule import ACTION_BOUNDS, LEARNED, build_schedule
from cogrpo_core.trajectory import Trajectory, TrajectoryError
from cogrpo_trainer.daemon.config import DaemonConfig
from cogrpo_trainer.daemon.evaluation import Look
from cogrpo_trainer.measure import Scores
from cogrpo_trainer.promotion import Criteria, judge
from cogrpo_trainer.prompt_files import plain

_BATCH = 16


@dataclass(frozen=True)
class Compared:
    """How much less the live pictures are worth, if they surely are."""

    why: str | None
    """In a line; None where they are not, or not known to be."""
    facts: Json


class LiveReward:
    """Compares what a version served with what another makes."""

    def __init__(
        self,
        config: DaemonConfig,
        *,
        base: Checkpoint,
        registry: PolicyRegistry,
        trained: Composite,
    ) -> None:
        """`trained` scores what is learned from."""
        self._config = config
        self._base = CoGRPOPipeline(base)
        self._registry = registry
        self._trained = trained

    def compare(
        self,
        version: str,
        former: str | None,
        entries: Sequence[Entry],
        look: Look = lambda: None,
    ) -> Compared | None:
        """Whether pictures of `version` are worth less; None where too few can be compared.

        `former` None is the base model. Raises `RegistryError`, `NonFiniteError`, and
        `PromotionError` where too few have scores.
        """
        champion = load_tried(self._registry, version, self._base, {})
        live = self._comparable(entries, champion.checkpoint)
        if len(live) < self._config.watch.pictures:
            return None
        other = self._base if former is None else load_tried(self._registry, former, self._base, {})
        now, before = self._scores(live, other, look)
        train, watch = self._config.train, self._config.watch
        # A fall is the gain of what has the opposite sign.
        fall = judge(
            {name: -values for name, values in now.items()},
            {name: -values for name, values in before.items()},
            Criteria(train.rewards, watch.margin, level=self._config.gate.level),
        ).effect
        facts: Json = {
            "pictures": fall.n,
            "against": other.policy_version,
            "fall": fall.value,
            "fall_bound": fall.lower,
            "margin": watch.margin,
            "level": self._config.gate.level,
            "rewards": _means(now),
            "former_rewards": _means(before),
        }
        if not fall.holds:
            return Compared(None, facts)
        why = (
            f"the reward of {fall.n} live pictures is {fall.value:.2f} standard deviations below "
            f"that of {other.policy_version}, surely more than {fall.lower:.2f}"
        )
        return Compared(why, facts)

    def _comparable(self, entries: Sequence[Entry], champion: Checkpoint) -> list[Trajectory]:
        """The newest picture of each prompt that the version made as it does by itself."""
        defaults = champion.generation
        found: dict[str, Trajectory] = {}
        for entry in entries:
            try:
                one = entry.trajectory()
            except TrajectoryError:
                continue
            if (
                one.fingerprint == champion.fingerprint
                and (one.height, one.width) == (defaults.height, defaults.width)
                and _by_itself(one, champion)
            ):
                found.setdefault(plain(one.prompt), one)
        return list(found.values())[: self._config.watch.pictures]

    def _scores(
        self, live: Sequence[Trajectory], other: CoGRPOPipeline, look: Look
    ) -> tuple[Scores, Scores]:
        """Rewards [B] of the live pictures, and of the other version's."""
        columns: tuple[dict[str, list[np.ndarray]], ...] = ({}, {})
        for start in range(0, len(live), _BATCH):
            look()
            part = live[start : start + _BATCH]
            jobs = [
                other.plan(
                    one.prompt,
                    negative_prompt=one.negative_prompt,
                    num_inference_steps=one.num_steps,
                    seed=one.seed,
                )[0]
                for one in part
            ]
            prompts = [one.prompt for one in part]
            for into, made in zip(columns, (part, other.generate(jobs))):
                pixels = np.stack([np.asarray(image) for image in other.decode(made)])
                for name, values in self._trained.score(pixels, prompts).by_reward.items():
                    into.setdefault(name, []).append(np.asarray(values, np.float64))
        now, before = (
            {name: np.concatenate(values) for name, values in each.items()} for each in columns
        )
        return now, before


def _by_itself(trajectory: Trajectory, checkpoint: Checkpoint) -> bool:
    """Whether schedule and guidance were the version's own, neither the caller's nor explored."""
    policy, defaults = checkpoint.schedule_policy, checkpoint.generation
    if (trajectory.schedule == LEARNED) != (policy is not None):
        return False
    table_T4 = build_schedule(
        "meissonic",
        trajectory.num_steps,
        guidance_scale=defaults.guidance_scale,
        remask_temperature=defaults.remask_temperature,
    ).actions_T4
    if policy is not None and trajectory.raw_actions is not None:
        low_4, high_4 = torch.tensor(ACTION_BOUNDS).T
        raw_T4 = torch.from_numpy(np.array(trajectory.raw_actions))
        table_T4 = policy.apply_action(table_T4, raw_T4).clamp(low_4, high_4)
    return np.allclose(trajectory.actions, table_T4.numpy(), rtol=1e-4, atol=1e-5)


def _means(scores: Scores) -> Json:
    return {name: float(np.nanmean(values)) for name, values in scores.items()}
