"""Whether a version that serves does worse than the one it is compared with: errors and speed.

policy_follower.py asks, and takes the version back. The trainer, which has rewards, looks at those.
"""

from dataclasses import dataclass

from cogrpo_core.versions import Health


@dataclass(frozen=True)
class Limits:
    """What counts as worse. Both versions must have been seen often enough, else nothing does."""

    requests: int = 20
    """Of each version, for a word on errors."""
    turns: int = 40
    """Of each version, for a word on speed."""
    error_margin: float = 0.1
    """The share of failed requests may be so much higher."""
    slowdown: float = 2.0
    """A step may take so many times as long."""
    watch_seconds: float = 600.0
    """After a new champion began to serve, for so long it is compared with the former one."""


def fault(new: Health, other: Health, limits: Limits) -> str | None:
    """Why `new` is worse than `other`, in a line; None when it is not, or not known to be.

    A pass of few images costs more an image, one of many costs more a pass. So a version is slower
    only when both its passes and its images are.
    """
    if min(new.requests, other.requests) >= limits.requests:
        ours, theirs = new.failed / new.requests, other.failed / other.requests
        if ours > theirs + limits.error_margin:
            return f"{new.failed} of {new.requests} requests failed, {theirs:.0%} before"
    if min(new.turns, other.turns) >= limits.turns:
        ratios = [
            ours / theirs
            for ours, theirs in (
                (new.seconds_per_turn, other.seconds_per_turn),
                (new.seconds_per_step, other.seconds_per_step),
            )
            if ours is not None and theirs
        ]
        if ratios and min(ratios) > limits.slowdown:
            return f"steps take {min(ratios):.1f} times as long as those of the other version"
    return None
