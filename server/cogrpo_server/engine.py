"""A replica's engine: the core's engine, seen from an event loop, with the log behind it.

The event loop only waits, so health and refusals answer while pictures are made. A job that is
closed, or whose time is over, ends at its next step.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from cogrpo_client.types import Attribution, Info, Replica
from cogrpo_core.exchange.entry import Event
from cogrpo_core.exchange.policy_registry import RegistryError
from cogrpo_core.exchange.trajectory_log import TrajectoryWriter
from cogrpo_server.jobs import (
    EngineStatus,
    Job,
    Made,
    Outcome,
    Picture,
    Previewed,
    Progress,
    Refused,
    Remade,
)
from cogrpo_server.listener import Listener
from cogrpo_server.loading import LoadError, load_pipeline
from cogrpo_server.metrics_engine import EngineMetrics
from cogrpo_server.metrics_policies import PolicyMetrics
from cogrpo_server.outcomes import invalid_for, refused_by, remade
from cogrpo_server.settings import Settings
from cogrpo_server.telemetry import Telemetry
from cogrpo_server.versions import Versions, lot_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from cogrpo_core.engine import Engine as CoreEngine
    from cogrpo_core.work import EngineStats, Result

LONGEST_RETRY_AFTER = 120
WEDGED_SECONDS = 120.0
"""Without a finished turn for so long, work under way is taken to be stuck."""
FAILED_SECONDS = 15.0
"""So long a model that could not be loaded says why, before another replica tries."""
ADAPTIVE_SHARE = 4
"""An adaptive job gets at least one in so many of the steps that it asked for."""
PREVIEW_SIDE = 256

logger = logging.getLogger(__name__)


class Engine:
    """A checkpoint that makes the pictures of jobs, as many at once as it has slots.

    It loads in the background; `status` says when it is ready, or why it never will be. All methods
    are called from one event loop.
    """

    def __init__(
        self,
        settings: Settings,
        writer: TrajectoryWriter | None,
        *,
        device: str = "cpu",
        telemetry: Telemetry | None = None,
        announce_url: str | None = None,
    ) -> None:
        """`announce_url` is the Redis where moves of policies are announced, if there is one."""
        self._settings = settings
        self._writer = writer
        self._state = EngineStatus("loading")
        self._core: CoreEngine | None = None
        self._versions: Versions | None = None
        self._accepted = 0
        self._loaded = threading.Event()
        self._failed_at: float | None = None
        self._telemetry = telemetry or Telemetry("engine")
        self._telemetry.replica = self.replica
        self._metrics = EngineMetrics(
            self._telemetry.registry,
            slots=settings.slots,
            stats=self._stats,
            log=lambda: None if writer is None else writer.status(),
            info=lambda: self._info,
        )
        PolicyMetrics(self._telemetry.registry, lambda: self._versions)
        threading.Thread(
            target=self._load, args=(device, announce_url), name="load", daemon=True
        ).start()

    @property
    def _info(self) -> Info | None:
        return None if self._versions is None else self._versions.info()

    async def run(self, job: Job) -> AsyncGenerator[Progress | Outcome]:
        """See `Backend.run`; bounded by `settings.request_seconds`."""
        refused = self._refusal(job)
        if refused is not None:
            yield refused
            return
        self._accepted += 1
        try:
            async with contextlib.aclosing(self._run(job)) as messages:
                async for message in messages:
                    yield message
        finally:
            self._accepted -= 1

    async def _run(self, job: Job) -> AsyncGenerator[Progress | Outcome]:
        from cogrpo_core.admission import EngineError

        assert self._core is not None
        listener = Listener(job)
        try:
            future = self._core.submit(self._request(job, listener))
        except EngineError as error:
            yield refused_by(error, self._retry_after(), at_once=True)
            return
        future.add_done_callback(listener.done)
        try:
            while (message := await listener.next()) is not None:
                if isinstance(message, tuple):
                    image, step, tokens = message
                    png = await asyncio.to_thread(self._preview, listener.grid, tokens)
                    message = Previewed(image, step, png)
                yield message
            yield await self._outcome(job, future)
        finally:
            self._core.cancel(future)

    async def replay(self, data: bytes, trajectory_id: str) -> Remade | Refused:
        """See `Backend.replay`; beside the engine's turns, in a thread."""
        from cogrpo_core.inputs import PipelineInputError
        from cogrpo_core.trajectory import Trajectory, TrajectoryError

        if self._versions is None:
            return self._not_ready() or Refused("failed", "The model could not be loaded.")
        try:
            trajectory = Trajectory.from_bytes(data)
            again = await asyncio.to_thread(self._versions.replay, trajectory)
        except TrajectoryError:
            return Refused("failed", "What was logged is damaged.")
        except (PipelineInputError, RegistryError):
            return Refused("invalid", "No engine has the model or sampler that made the pictures.")
        return remade(trajectory, again.trajectories[0], again.images[0], trajectory_id)

    async def status(self) -> EngineStatus:
        """The state of this moment, with what is degraded."""
        stats = self._stats()
        return EngineStatus(
            self._state.state,
            self._state.reason,
            self._degraded(),
            self._info,
            stats.waiting if stats else 0,
            stats.running if stats else 0,
        )

    def replica(self) -> Replica:
        """The same as the operator's wire form; may be called from any thread."""
        stats = self._stats()
        return Replica(
            **({} if self._versions is None else self._versions.facts()),
            id=self._telemetry.process,
            status=self._state.state,
            started=self._telemetry.started,
            slots=self._settings.slots,
            slots_used=stats.running if stats else 0,
            queued=stats.waiting if stats else 0,
            seconds_since_step=stats.seconds_without_turn if stats and stats.cost else None,
            degraded=self._degraded(),
        )

    def is_wedged(self) -> bool:
        """Whether there is work of which no step has been done for a long time, or no model."""
        if self._failed_at is not None:
            return time.monotonic() - self._failed_at > FAILED_SECONDS
        stats = self._stats()
        return stats is not None and stats.seconds_without_turn > WEDGED_SECONDS

    def wait_until_loaded(self) -> None:
        """Until the model is loaded or could not be, or its time for that is over."""
        self._loaded.wait(self._settings.start_seconds)

    def close(self) -> None:
        """Refuses and stops all jobs, then writes the trajectories that wait; bounded."""
        self._state = EngineStatus("stopping")
        if self._versions is not None:
            self._versions.close()
        if self._core is not None:
            self._core.close()
        if self._writer is not None:
            self._writer.close()

    def _load(self, device: str, announce_url: str | None) -> None:
        from cogrpo_core.engine import Engine as CoreEngine

        try:
            pipeline = load_pipeline(self._settings, device)
            self._core = CoreEngine(
                pipeline, slots=self._settings.slots, max_cost=self._settings.queued_cost
            )
            who = self._telemetry.process
            versions = Versions(self._settings, self._core, announce_url=announce_url, who=who)
            versions.begin()
            self._versions = versions
            state = EngineStatus("ready")
        except LoadError as error:
            state = EngineStatus("failed", str(error))
        except Exception:
            logger.exception("the model could not be loaded")
            state = EngineStatus("failed", "the model could not be loaded; engine.log says why")
        if state.state == "failed":
            self._failed_at = time.monotonic()
        if self._state.state == "loading":
            self._state = state
        elif self._core is not None:  # it was closed meanwhile
            if self._versions is not None:
                self._versions.close()
            self._core.close()
        self._loaded.set()

    def _stats(self) -> "EngineStats | None":
        return None if self._core is None else self._core.stats()

    def _degraded(self) -> list[str]:
        degraded = [] if self._versions is None else self._versions.degraded()
        if self._writer is None:
            return ["trajectory log: there is none", *degraded]
        log = self._writer.status()
        if not log.connected:
            degraded.append(f"trajectory log: away; {log.waiting} trajectories wait")
        if log.dropped:
            degraded.append(f"trajectory log: {log.dropped} trajectories dropped since start")
        return degraded

    def _not_ready(self) -> Refused | None:
        if self._state.state == "loading":
            return Refused("loading", "The model is being loaded.", retry_after=5)
        if self._state.state == "stopping":
            return Refused("stopping", "The service is stopping.", retry_after=5)
        if self._state.state == "failed":
            return Refused("failed", "The model could not be loaded.")
        return None

    def _refusal(self, job: Job) -> Refused | None:
        if (refused := self._not_ready()) is not None:
            return refused
        if self._accepted >= self._settings.queued_requests:
            return Refused("overloaded", "The queue is full.", retry_after=self._retry_after())
        if job.n * self._steps(job) > (limit := self._settings.images_times_steps):
            return Refused("invalid", f"n times num_inference_steps can be {limit} at most", "/n")
        return None

    def _steps(self, job: Job) -> int:
        assert self._info is not None
        return job.num_inference_steps or self._info.model.num_inference_steps

    def _retry_after(self) -> int:
        """When half of what is under way should be done."""
        assert self._core is not None
        seconds = self._core.stats().seconds_of_work / 2
        return min(LONGEST_RETRY_AFTER, max(1, math.ceil(seconds)))

    def _request(self, job: Job, listener: Listener) -> Any:
        from cogrpo_core.work import Request

        height, width = job.size or (None, None)
        seconds = self._settings.request_seconds
        if job.deadline_seconds is not None:
            seconds = min(seconds, job.deadline_seconds)
        steps = self._steps(job)
        wants_steps = job.steps_wanted or job.previews > 0
        return Request(
            {
                "prompt": job.prompt,
                "negative_prompt": job.negative_prompt,
                "guidance_scale": job.guidance_scale,
                "schedule": job.schedule,
                "seed": job.seed,
                "height": height,
                "width": width,
            },
            images=job.n,
            num_steps=steps,
            min_steps=max(1, math.ceil(steps / ADAPTIVE_SHARE)) if job.adaptive else None,
            explore=job.explores(self._settings.explore_share),
            deadline=time.monotonic() + seconds,
            lot=lot_of(job),
            on_start=listener.started,
            on_step=listener.stepped if wants_steps else None,
        )

    def _preview(self, grid: tuple[int, int], tokens: Any) -> bytes:
        """In a thread of its own."""
        from cogrpo_core.images import decode_unfinished, encode_png

        assert self._core is not None
        pipeline = self._core.serving.champion  # all versions have its decoder
        checkpoint = pipeline.checkpoint
        image = decode_unfinished(
            checkpoint.vqvae,
            tokens,
            grid,
            mask_token_id=checkpoint.transformer.config.mask_token_id,
            max_side=PREVIEW_SIDE,
            tile=pipeline.decode_tile,
        )
        return encode_png(image)

    async def _outcome(self, job: Job, future: "Future[Result]") -> Outcome:
        from cogrpo_core.admission import EngineError
        from cogrpo_core.inputs import PipelineInputError

        try:
            result = future.result(0)
        except EngineError as error:
            return refused_by(error, self._retry_after())
        except PipelineInputError as error:
            assert self._info is not None
            return invalid_for(error, self._info.limits.prompt_tokens)
        self._metrics.note(result)
        made = await self._render(job, result)
        if made.stored and self._writer is not None:
            for picture, trajectory in zip(made.pictures, result.trajectories, strict=True):
                self._writer.offer(
                    Event(picture.trajectory_id, job.request_id, trajectory, job.user or "")
                )
        return made

    async def _render(self, job: Job, result: "Result") -> Made:
        """The PNG files, encoded outside both the event loop and the engine's threads."""
        from cogrpo_core.images import png_bytes

        pictures = []
        for i, (image, trajectory) in enumerate(
            zip(result.images, result.trajectories, strict=True)
        ):
            png = await asyncio.to_thread(png_bytes, image, trajectory)
            pictures.append(Picture(png, trajectory.seed, f"{job.id}-{i}"))
        first = result.trajectories[0]
        return Made(
            id=job.id,
            created=int(time.time()),
            stored=job.store and self._writer is not None,
            pictures=pictures,
            attribution=Attribution(
                model=first.model,
                policy_version=first.policy_version,
                schedule=first.schedule,
                steps_planned=result.steps_planned,
                steps_used=first.num_steps,
                queue_ms=round(1e3 * result.queue_seconds, 1),
                inference_ms=round(1e3 * result.inference_seconds, 1),
            ),
            size=(first.height, first.width),
        )
