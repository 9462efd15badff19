"""What of the log waits to be learned from: one group for each prompt, deduplicated and capped.

Trajectories of one prompt, settings and policy are a group; those that cannot be trained on leave
their prompt. Nothing is acknowledged here: whoever takes a group does that once it is durable.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cogrpo_core.exchange.trajectory_consumer import Delivery
from cogrpo_core.trajectory import Trajectory
from cogrpo_trainer.prompt_files import plain


@dataclass(frozen=True)
class Kind:
    """What trajectories of a group have in common."""

    prompt: str
    negative_prompt: str
    num_steps: int
    explored: bool
    fingerprint: str


KindOf: TypeAlias = Callable[[Trajectory], Kind | None]
"""The kind of a trajectory that can be trained on; None for one that only gives its prompt."""


@dataclass
class Group:
    """A prompt, the trajectories there are of it, and what has to be acknowledged with it."""

    prompt: str
    user: str = ""
    """A digest of who asked first."""
    kind: Kind | None = None
    live: list[Delivery] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)


class Pool:
    """Groups in the order in which their prompts came, `capacity` trajectories at most."""

    def __init__(
        self,
        kind_of: KindOf,
        usable: Callable[[str], bool],
        *,
        group_size: int,
        prompts_per_user: int,
        capacity: int,
    ) -> None:
        """`usable` says whether the model can read a prompt."""
        self._kind_of = kind_of
        self._usable = usable
        self._group_size = group_size
        self._prompts_per_user = prompts_per_user
        self._capacity = capacity
        self._groups: OrderedDict[str, Group] = OrderedDict()
        self._taken: set[str] = set()
        self._per_user: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        """Groups that wait."""
        return len(self._groups)

    @property
    def room(self) -> int:
        """How many trajectories it can still hold."""
        held = sum(len(group.deliveries) for group in self._groups.values())
        return max(0, self._capacity - held)

    def add(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Takes them in; gives back those that nothing will be learned from, to acknowledge."""
        return [one for one in deliveries if not self._add(one)]

    def take(self, count: int) -> list[Group]:
        """The `count` oldest groups, or as many as there are."""
        taken = [self._groups.popitem(last=False)[1] for _ in range(min(count, len(self._groups)))]
        self._taken.update(_digest(plain(group.prompt)) for group in taken)
        self.counts["trained_on"] += sum(len(group.live) for group in taken)
        self.counts["prompts"] += len(taken)
        return taken

    def clear(self) -> list[Delivery]:
        """Gives all up, and forgets what the cycle has had."""
        left = [one for group in self._groups.values() for one in group.deliveries]
        self._groups.clear()
        self._taken.clear()
        self._per_user.clear()
        self.counts.clear()
        return left

    def memory(self) -> dict[str, Any]:
        """What a cycle has had, as JSON, without prompts and names in it."""
        waiting = Counter(group.user for group in self._groups.values())
        return {"taken": sorted(self._taken), "users": dict(self._per_user - waiting)}

    def remember(self, memory: dict[str, Any]) -> None:
        """Goes on from what `memory` gave."""
        self._taken = set(memory.get("taken", ()))
        self._per_user = Counter(memory.get("users", {}))

    def _add(self, one: Delivery) -> bool:
        trajectory = one.trajectory
        name = plain(trajectory.prompt)
        kind = self._kind_of(trajectory)
        group = self._groups.get(name)
        if group is None:
            user = _digest(one.entry.user)
            if not name or not self._usable(trajectory.prompt):
                return self._drop("unusable")
            if _digest(name) in self._taken:
                return self._drop("repeated")
            if self._per_user[user] >= self._prompts_per_user:
                return self._drop("beyond_user_cap")
            self._per_user[user] += 1
            group = self._groups[name] = Group(trajectory.prompt, user)
        elif kind is None or kind != (group.kind or kind) or len(group.live) >= self._group_size:
            return self._drop("repeated")
        if kind is not None:
            # What is trained on is the text that these trajectories were made of, to the letter.
            group.kind, group.prompt = kind, kind.prompt
            group.live.append(one)
        group.deliveries.append(one)
        return True

    def _drop(self, why: str) -> bool:
        self.counts[why] += 1
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
