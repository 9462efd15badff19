"""The rewards that ship with the embedded model, by name."""

from collections.abc import Callable
from pathlib import Path

from cogrpo_core.rewards.files import REWARDS_FOLDER
from cogrpo_core.rewards.reward import Reward, RewardError


def _clip(folder: Path, name: str, device: str) -> Reward:
    try:
        from cogrpo_core.rewards.clip import load_clip
    except ImportError as error:
        raise RewardError(
            f"{name} needs open_clip: pip install 'cogrpo[rewards]' ({error})"
        ) from None
    return load_clip(folder, name, device)


def _quality(folder: Path, name: str, device: str) -> Reward:
    from cogrpo_core.rewards.quality import load_quality

    return load_quality(folder, name, device)


LOADERS: dict[str, Callable[[Path, str, str], Reward]] = {
    "shapes-align": _clip,
    "shapes-quality": _quality,
    "shapes-judge": _clip,
}
HELD_OUT = frozenset({"shapes-judge"})
"""For evaluation only: nothing may be trained on these."""


def load_reward(name: str, device: str = "cpu", folder: Path | None = None) -> Reward:
    """The reward of that name, from the package or from the rewards in `folder`.

    Raises `RewardError` for an unknown name and for a folder that cannot be used.
    """
    if name not in LOADERS:
        raise RewardError(f"unknown reward {name!r}: choose one of {', '.join(LOADERS)}")
    return LOADERS[name]((folder or REWARDS_FOLDER) / name, name, device)
