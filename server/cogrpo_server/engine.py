"""The engine: one model in a thread of its own, a bounded queue before it.

The event loop only waits, so health and refusals answer while pictures are made. A job that is
cancelled, or whose time is over, stops at the next step boundary.
"""

import asyncio
import functools
import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cogrpo_client.types import Attribution, Info
from cogrpo_core.exchange.trajectory_log import Event, TrajectoryWriter
from cogrpo_server.jobs import EngineStatus, Job, Made, Picture, Refused
from cogrpo_server.loading import LoadError, describe, load_pipeline
from cogrpo_server.settings import Settings

if TYPE_CHECKING:
    from cogrpo_core.inputs import PipelineInputError
    from cogrpo_core.pipeline import CoGRPOPipeline, PipelineOutput

LONGEST_RETRY_AFTER = 120
WEDGED_SECONDS = 120.0
"""Without a finished step for so long, work under way is taken to be stuck."""

_GRACE_SECONDS = 5.0

logger = logging.getLogger(__name__)


class _Stopped(Exception):
    """The job ends at this step boundary."""


@dataclass(eq=False)
class _Ticket:
    """A job's place in the queue, shared by event loop and model thread."""

    accepted: float
    deadline: float
    cancelled: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        if self.cancelled.is_set() or time.monotonic() > self.deadline:
            raise _Stopped


@dataclass(frozen=True)
class _Done:
    """What the model thread gives back."""

    output: "PipelineOutput"
    queue_ms: float
    inference_ms: float


class Engine:
    """A checkpoint that makes the pictures of jobs, one job at a time.

    It loads in the background; `status` says when it is ready, or why it never will be. All methods
    are called from one event loop.
    """

    def __init__(
        self, settings: Settings, writer: TrajectoryWriter | None, *, device: str = "cpu"
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._state = EngineStatus("loading")
        self._pipeline: CoGRPOPipeline | None = None
        self._info: Info | None = None
        self._tickets: set[_Ticket] = set()
        self._last_step: float | None = None  # None while no job runs
        self._seconds_per_job = 1.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._thread.submit(self._load, device)

    async def generate(self, job: Job) -> Made | Refused:
        """The pictures of a job, or why there are none; bounded by `settings.request_seconds`.

        Cancelling the call frees the queue at once and the model at the next step boundary.
        """
        refused = self._refusal(job)
        if refused is not None:
            return refused
        now = time.monotonic()
        ticket = _Ticket(now, now + self._settings.request_seconds)
        self._tickets.add(ticket)
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._work, job, ticket)
        work.add_done_callback(functools.partial(self._finished, ticket))
        try:
            limit = self._settings.request_seconds + _GRACE_SECONDS
            done = await asyncio.wait_for(asyncio.shield(work), limit)
        except TimeoutError:
            return self._timed_out(ticket)
        except asyncio.CancelledError:
            if self._state.state == "stopping":
                return Refused("stopping", "The service is stopping.", retry_after=5)
            raise
        finally:
            ticket.cancelled.set()
            work.cancel()  # takes it out of the queue; a running job stops by its ticket
        if isinstance(done, Refused):
            return done
        made = await self._render(job, done)
        if job.store and self._writer is not None:
            for picture, trajectory in zip(made.pictures, done.output.trajectories):
                self._writer.offer(Event(picture.trajectory_id, job.request_id, trajectory))
        return made

    async def status(self) -> EngineStatus:
        """The state of this moment, with what is degraded."""
        degraded = []
        if self._writer is None:
            degraded.append("trajectory log: there is none")
        else:
            log = self._writer.status()
            if not log.connected:
                degraded.append(f"trajectory log: away; {log.waiting} trajectories wait in memory")
            if log.dropped:
                degraded.append(f"trajectory log: {log.dropped} trajectories dropped since start")
        return EngineStatus(self._state.state, self._state.reason, degraded, self._info)

    def is_wedged(self) -> bool:
        """Whether a job runs that has finished no step for a long time."""
        last = self._last_step
        return last is not None and time.monotonic() - last > WEDGED_SECONDS

    def close(self) -> None:
        """Refuses and stops all jobs, then writes the trajectories that wait; bounded."""
        self._state = EngineStatus("stopping")
        for ticket in list(self._tickets):
            ticket.cancelled.set()
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._writer is not None:
            self._writer.close()

    def _load(self, device: str) -> None:
        try:
            pipeline = load_pipeline(self._settings, device)
            self._pipeline, self._info = pipeline, describe(pipeline, self._settings)
            state = EngineStatus("ready")
        except LoadError as error:
            state = EngineStatus("failed", str(error))
        except Exception:
            logger.exception("the model could not be loaded")
            state = EngineStatus("failed", "the model could not be loaded; engine.log says why")
        if self._state.state == "loading":
            self._state = state

    def _refusal(self, job: Job) -> Refused | None:
        if self._state.state == "loading":
            return Refused("loading", "The model is being loaded.", retry_after=5)
        if self._state.state == "stopping":
            return Refused("stopping", "The service is stopping.", retry_after=5)
        if self._state.state == "failed" or self._info is None:
            return Refused("failed", "The model could not be loaded.")
        waiting = len(self._tickets)
        if waiting >= self._settings.queued_requests:
            wait = min(LONGEST_RETRY_AFTER, max(1, math.ceil(waiting * self._seconds_per_job / 2)))
            return Refused("overloaded", "The queue is full.", retry_after=wait)
        steps = job.num_inference_steps or self._info.model.num_inference_steps
        if job.n * steps > (limit := self._settings.images_times_steps):
            return Refused("invalid", f"n times num_inference_steps can be {limit} at most", "/n")
        return None

    def _work(self, job: Job, ticket: _Ticket) -> _Done | Refused:
        """In the model thread."""
        from cogrpo_core.inputs import PipelineInputError
        from cogrpo_core.pipeline import NonFiniteError

        assert self._pipeline is not None
        started = self._last_step = time.monotonic()
        try:
            ticket.check()
            output = self._run(self._pipeline, job, ticket)
        except _Stopped:
            return self._timed_out(ticket)
        except PipelineInputError as error:
            return self._invalid(error)
        except NonFiniteError:
            logger.error("request %s: the model gave values that are not finite", job.request_id)
            return Refused("failed", "The model gave no usable picture.")
        except Exception:
            logger.exception("request %s: the model failed", job.request_id)
            return Refused("failed", "The model failed.")
        finally:
            self._last_step = None
        ended = time.monotonic()
        self._seconds_per_job += 0.2 * (ended - started - self._seconds_per_job)
        return _Done(output, 1e3 * (started - ticket.accepted), 1e3 * (ended - started))

    def _run(self, pipeline: "CoGRPOPipeline", job: Job, ticket: _Ticket) -> "PipelineOutput":
        def at_step_end(*_: Any) -> None:
            self._last_step = time.monotonic()
            ticket.check()

        height, width = job.size or (None, None)
        return pipeline(
            job.prompt,
            negative_prompt=job.negative_prompt,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            schedule=job.schedule,
            seed=job.seed,
            height=height,
            width=width,
            num_images_per_prompt=job.n,
            callback_on_step_end=at_step_end,
        )

    async def _render(self, job: Job, done: _Done) -> Made:
        """The PNG files, encoded outside both the event loop and the model thread."""
        from cogrpo_core.images import png_bytes

        trajectories = done.output.trajectories
        pictures = []
        for i, (image, trajectory) in enumerate(zip(done.output.images, trajectories)):
            png = await asyncio.to_thread(png_bytes, image, trajectory)
            pictures.append(Picture(png, trajectory.seed, f"{job.id}-{i}"))
        first = trajectories[0]
        return Made(
            id=job.id,
            created=int(time.time()),
            stored=job.store and self._writer is not None,
            pictures=pictures,
            attribution=Attribution(
                model=first.model,
                policy_version=first.policy_version,
                schedule=first.schedule,
                steps_planned=first.num_steps,
                steps_used=first.num_steps,
                queue_ms=round(done.queue_ms, 1),
                inference_ms=round(done.inference_ms, 1),
            ),
        )

    def _finished(self, ticket: _Ticket, _: object) -> None:
        self._tickets.discard(ticket)

    def _timed_out(self, ticket: _Ticket) -> Refused:
        if self._state.state == "stopping":
            return Refused("stopping", "The service is stopping.", retry_after=5)
        seconds = f"{self._settings.request_seconds:g}"
        return Refused("timeout", f"The pictures were not ready within {seconds} seconds.")

    def _invalid(self, error: "PipelineInputError") -> Refused:
        """What only the model can judge; in words of our own, for a message may quote the input."""
        assert self._info is not None
        name = error.field.split(".")[0]
        tokens = self._info.limits.prompt_tokens
        messages = {
            "prompt": f"longer than the {tokens} tokens that the text encoder reads; shorten it",
            "negative_prompt": f"longer than the {tokens} tokens that are read; shorten it",
            "height": "the model makes no picture of this size; GET /v1/info lists its sizes",
            "width": "the model makes no picture of this size; GET /v1/info lists its sizes",
            "schedule": "not a schedule of this model with so many steps; GET /v1/info lists them",
        }
        message = messages.get(name, "the model cannot do this; GET /v1/info lists its limits")
        return Refused("invalid", message, "/" + error.field.replace(".", "/"))
