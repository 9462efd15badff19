"""The operator's side: training cycles, policy versions, replicas, draining.

Times are Unix seconds.
"""

from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from cogrpo_client.types.problem import Problem
from cogrpo_client.types.request import Strict

RunState = Literal["queued", "running", "completed", "failed", "cancelled"]
Phase = Literal["rollout", "model", "schedule", "evaluation"]


class CycleRequest(Strict):
    """The body of `POST /admin/training/cycles`; what is left out is the trainer's setting."""

    model_iterations: int | None = Field(default=None, ge=0, le=100_000, description="N_m")
    schedule_iterations: int | None = Field(default=None, ge=0, le=100_000, description="N_s")
    reason: str = Field(default="", max_length=500)


class Evaluation(BaseModel):
    """A paired test of a version against another, on held-out prompts with the same seeds."""

    status: RunState
    against: str
    suite: str = Field(description="Empty until the trainer has said what its gate uses.")
    started: int | None = None
    finished: int | None = None
    prompts: int = 0
    effect: float | None = Field(default=None, description="Mean difference of the reward.")
    interval: tuple[float, float] | None = Field(default=None, description="95 %, of the effect.")
    rewards: dict[str, float] = Field(default={}, description="Means of this version, by reward.")
    passed: bool | None = None
    reasons: list[str] = Field(default=[], description="Why it did not pass.")
    error: Problem | None = Field(default=None, description="When failed or cancelled.")


class Cycle(BaseModel):
    """A training cycle: model and schedule trained in turn, then a challenger tested."""

    id: str
    status: RunState
    phase: Phase | None = None
    created: int
    started: int | None = None
    finished: int | None = None
    iteration: int = 0
    iterations: int = 0
    parent: str = Field(description="The policy version that it began from.")
    policy_version: str | None = Field(default=None, description="The challenger it made.")
    promoted: bool = False
    evaluation: Evaluation | None = None
    error: Problem | None = Field(default=None, description="When failed or cancelled.")
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing comes after this."""
        return self.status in ("completed", "failed", "cancelled")


class Judged(BaseModel):
    """How a version was found to be, as the journal has it."""

    status: Literal["passed", "rejected"]
    created: int
    caller: str = Field(description="Who judged: a gate, a guard, the id of an API key.")
    reason: str = ""
    evidence: dict[str, JsonValue] = {}


class Policy(BaseModel):
    """A version of model and schedule in the registry; it never changes but for its aliases."""

    version: str
    status: Literal["candidate", "passed", "rejected"]
    parent: str | None = Field(default=None, description="What training began from.")
    on: str | None = Field(default=None, description="Whose transformer it adds to or uses.")
    created: int
    kind: Literal["full", "lora", "schedule"]
    sha256: str = Field(description="The same weights have the same.")
    bytes: int
    aliases: list[str] = Field(default=[], description="champion, challenger, previous")
    training: dict[str, JsonValue] | None = Field(default=None, description="Left out of lists.")
    evidence: dict[str, JsonValue] | None = Field(default=None, description="Left out of lists.")
    judgement: Judged | None = Field(default=None, description="The latest; left out of lists.")
    evaluation: Evaluation | None = Field(default=None, description="The latest.")


class EvaluateRequest(Strict):
    """The body of `POST /admin/policies/{version}/evaluate`."""

    against: str | None = Field(
        default=None, min_length=1, max_length=128, description="The champion if left out; `base`."
    )
    suite: str | None = Field(
        default=None, min_length=1, max_length=128, description="A name that the trainer knows."
    )
    prompts: int | None = Field(default=None, ge=20, le=10_000)


class PromoteRequest(Strict):
    """The body of `POST /admin/policies/{version}/promote`."""

    expected: str | None = Field(
        default=None, max_length=128, description="The champion now, or it is refused; `base` too."
    )
    force: bool = Field(default=False, description="Without evidence; it is audited.")
    reason: str = Field(default="", max_length=500, description="Needed with `force`.")


class RollbackRequest(Strict):
    """The body of `POST /admin/policies/rollback`."""

    expected: str | None = Field(
        default=None, max_length=128, description="The champion now, or it is refused."
    )
    reason: str = Field(default="", max_length=500)


class Promotion(BaseModel):
    """The champion moved, as the journal has it."""

    version: str = Field(description="`base` is the base model.")
    previous: str
    created: int
    forced: bool
    reason: str
    caller: str = Field(description="Who moved it: the id of an API key, a trainer, a guard.")


class CanaryRequest(Strict):
    """The body of `POST /admin/policies/canary`."""

    share: float = Field(ge=0, le=1, allow_inf_nan=False, description="Of the requests.")
    reason: str = Field(default="", max_length=500)


class Canary(BaseModel):
    """The version that is tried, and its share of the requests."""

    challenger: str | None
    share: float


class RefusedPolicy(BaseModel):
    """A version that an engine could not use; it tries again after waits that double."""

    version: str
    code: str = Field(description="The registry's, or `unusable`: it makes no picture.")
    tries: int
    at: int


class Replica(BaseModel):
    """One engine: what it serves and how loaded it is."""

    id: str
    status: Literal["ready", "loading", "failed", "stopping", "draining"]
    policy_version: str | None = None
    sha256: str | None = None
    challenger: str | None = Field(default=None, description="The version that it tries.")
    canary_share: float = 0.0
    converged: bool = Field(default=True, description="It serves what the registry names.")
    refused: list[RefusedPolicy] = []
    started: int
    slots: int
    slots_used: int
    queued: int
    seconds_since_step: float | None = Field(default=None, description="None while it is idle.")
    degraded: list[str] = []


class DrainRequest(Strict):
    """The body of `POST /admin/drain`."""

    draining: bool = True
    deadline_seconds: float | None = Field(default=None, ge=0, le=3600, allow_inf_nan=False)


class Drain(BaseModel):
    """Whether new generations are refused, and what is still under way."""

    draining: bool
    in_flight: int
    deadline: int | None = Field(default=None, description="When what is left is cancelled.")
