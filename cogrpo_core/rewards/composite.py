"""Several rewards over one batch, weighed: what fails is masked and reported, and nothing hangs."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np

from cogrpo_core.models.weights import one_line
from cogrpo_core.rewards.reward import Images, Reward, RewardError, Scores


@dataclass(frozen=True)
class Failure:
    """Why scores of a reward are missing, and how many."""

    reward: str
    message: str
    count: int


@dataclass(frozen=True)
class BatchScores:
    """The scores of a batch of B pictures; NaN where a reward failed, never zero."""

    by_reward: dict[str, Scores]
    """float32 [B] of each reward, unweighted."""
    weights: dict[str, float]
    failures: tuple[Failure, ...] = ()

    @property
    def total(self) -> Scores:
        """The weighted sum [B]; NaN where a reward with a weight has no score."""
        parts = [self.by_reward[name] * np.float32(w) for name, w in self.weights.items() if w]
        total: Scores = np.sum(parts, axis=0, dtype=np.float32)
        return total

    @property
    def failed(self) -> int:
        """How many scores are missing, over all rewards."""
        return sum(failure.count for failure in self.failures)


class Composite:
    """Rewards by name with a weight each, run side by side with a bounded wait.

    Every reward has a thread of its own. One that does not answer in `timeout_s` is masked; its
    thread is left to itself, and until it returns further calls of this reward fail at once. Raises
    `RewardError` for weights without a reward, rewards without a weight, and values that are no
    weights.
    """

    def __init__(
        self, rewards: Sequence[Reward], weights: Mapping[str, float], timeout_s: float = 30.0
    ) -> None:
        names = [reward.name for reward in rewards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RewardError(f"two rewards are named {twice[0]}: name each once")
        if set(names) != set(weights):
            odd = sorted(set(names) ^ set(weights))
            raise RewardError(f"rewards and weights must have the same names; not so: {odd}")
        bad = sorted(name for name, weight in weights.items() if not np.isfinite(weight))
        if bad:
            raise RewardError(f"the weight of {bad[0]} is {weights[bad[0]]}: give a number")
        if not any(weights.values()):
            raise RewardError("all weights are 0: give at least one reward another weight")
        if not 0 < timeout_s < np.inf:
            raise RewardError(f"timeout_s is {timeout_s}: give a number of seconds above 0")
        self.weights = {name: float(weights[name]) for name in names}
        self.timeout_s = timeout_s
        self._workers = [_Worker(reward) for reward in rewards]
        self._turn = threading.Lock()

    @property
    def versions(self) -> dict[str, str]:
        """The version of each reward."""
        return {worker.reward.name: worker.reward.version for worker in self._workers}

    def score(self, images: Images, prompts: Sequence[str]) -> BatchScores:
        """The scores of pictures, uint8 [B, H, W, 3], for B prompts.

        Returns within about `timeout_s`, whatever the rewards do. Raises `RewardError` only where
        images and prompts do not go together.
        """
        if len(images) != len(prompts):
            raise RewardError(f"{len(images)} pictures for {len(prompts)} prompts: give one each")
        with self._turn:
            for worker in self._workers:
                worker.start(images, prompts)
            deadline = time.monotonic() + self.timeout_s
            by_reward, failures = {}, []
            for worker in self._workers:
                scores, failure = _checked(worker, deadline, len(images), self.timeout_s)
                by_reward[worker.reward.name] = scores
                failures += [] if failure is None else [failure]
        return BatchScores(by_reward, dict(self.weights), tuple(failures))


class _Worker:
    """One reward and the thread that runs its calls, one at a time."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self._thread: threading.Thread | None = None
        self._answer: SimpleQueue[object] = SimpleQueue()
        self._stuck = False

    def start(self, images: Images, prompts: Sequence[str]) -> None:
        """Begins a call, unless one of an earlier batch still runs."""
        self._stuck = self._thread is not None and self._thread.is_alive()
        if self._stuck:
            return
        # A late answer of an earlier call stays in that call's own queue.
        answer: SimpleQueue[object] = SimpleQueue()
        self._answer = answer
        reward = self.reward

        def call() -> None:
            try:
                answer.put(reward(images, prompts))
            except BaseException as error:
                answer.put(_Raised(f"raised {type(error).__name__}: {one_line(error)}"))

        # A daemon: a reward that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=call, name=f"reward {reward.name}", daemon=True)
        self._thread.start()

    def answer(self, deadline: float) -> object:
        """What the call gave; `_Raised`, or `_Late` where nothing came before the deadline."""
        if self._stuck:
            return _Raised("still hangs in an earlier call")
        try:
            return self._answer.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            return _LATE


@dataclass(frozen=True)
class _Raised:
    message: str


_LATE = _Raised("")


def _checked(
    worker: _Worker, deadline: float, number: int, timeout_s: float
) -> tuple[Scores, Failure | None]:
    """The scores [B] of a call, NaN where there is none, and what is to be said about it."""
    name = worker.reward.name
    answer = worker.answer(deadline)
    message = None
    if answer is _LATE:
        message = f"gave no scores within {timeout_s:g} s"
    elif isinstance(answer, _Raised):
        message = answer.message
    else:
        try:
            scores = np.array(answer, dtype=np.float32)  # a copy: the reward may keep its own
        except (TypeError, ValueError) as error:
            message = f"gave no array of numbers ({one_line(error)})"
        else:
            if scores.shape != (number,):
                message = f"gave scores of shape {list(scores.shape)}, not [{number}]"
    if message is not None:
        missing = np.full(number, np.nan, np.float32)
        return missing, Failure(name, f"reward {name} {message}: its scores are masked", number)
    finite = np.isfinite(scores)
    if finite.all():
        return scores, None
    scores[~finite] = np.nan
    count = int((~finite).sum())
    message = f"reward {name} gave {count} of {number} scores that are not finite: they are masked"
    return scores, Failure(name, message, count)
