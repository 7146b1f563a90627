"""One of a voice's services at work in a pipeline of its own, and what comes out of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from pipecat.frames.frames import ErrorFrame, Frame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from backend.agent.briefing import Briefing
from backend.agent.voices import Facts
from backend.common.settings import LauncherSettings
from tests.waiting import wait_until_async

AnyFrame = TypeVar("AnyFrame", bound=Frame)


class Collector(FrameProcessor):
    """Keeps what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Keep it, and pass it on."""
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        await self.push_frame(frame, direction)


class RunningService:
    """What goes in, and what comes out."""

    def __init__(self, worker: PipelineWorker, collector: Collector) -> None:
        self._worker, self._collector = worker, collector
        self.errors: list[ErrorFrame] = []
        worker.add_event_handler("on_pipeline_error", self._on_error)

    async def send(self, *frames: Frame) -> None:
        """Put frames in."""
        await self._worker.queue_frames(list(frames))

    def all(self, kind: type[AnyFrame]) -> list[AnyFrame]:
        """Everything of this kind that came out."""
        return [frame for frame in self._collector.frames if isinstance(frame, kind)]

    async def got(self, kind: type[AnyFrame], *, within: float = 8.0) -> AnyFrame:
        """Wait for the first frame of this kind."""
        await wait_until_async(lambda: self.all(kind), timeout=within, what=f"a {kind.__name__} comes out")
        return self.all(kind)[0]

    async def failed(self, *, within: float = 8.0) -> ErrorFrame:
        """Wait for the first error."""
        await wait_until_async(lambda: self.errors, timeout=within, what="an error is reported")
        return self.errors[0]

    async def _on_error(self, _: object, error: ErrorFrame) -> None:
        self.errors.append(error)


@asynccontextmanager
async def running_service(*services: FrameProcessor) -> AsyncIterator[RunningService]:
    """Run services as a call does, and stop them as a call does."""
    collector = Collector()
    worker = PipelineWorker(Pipeline([*services, collector]), enable_rtvi=False, idle_timeout_secs=None)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    service = RunningService(worker, collector)
    running = asyncio.ensure_future(runner.run())
    try:
        yield service
    finally:
        await runner.cancel("the test is over")
        await asyncio.wait_for(running, timeout=10)


def settings(**changes: object) -> LauncherSettings:
    """The launcher's settings, of nothing but these."""
    values = {"livekit_url": "ws://127.0.0.1:1", "host_id": "h", "opening_line_cache_mb": 0, **changes}
    return LauncherSettings(_env_file=None, **values)  # type: ignore[arg-type]  # whatever a test gives


def briefing(**changes: object) -> Briefing:
    """A session; ``changes`` are what the test is about."""
    values = {
        "session_id": "session_1_abcd",
        "generation": 1,
        "agent_id": "agent_wxyz",
        "host_id": "h",
        "livekit_url": "ws://127.0.0.1:1",
        "room_token": "none",
        "longest_seconds": 60.0,
        **changes,
    }
    return Briefing(**values)  # type: ignore[arg-type]  # whatever a test gives


def facts(**changes: object) -> Facts:
    """A call of 75 s with 10 s left."""
    values = {
        "talked_seconds": lambda: 75.0,
        "left_seconds": lambda: 10.0,
        "agent_id": "agent_wxyz",
        "host_id": "box-1",
        "session_id": "session_1_abcd",
        "generation": 1,
        "user_name": "Ada",
        **changes,
    }
    return Facts(**values)  # type: ignore[arg-type]  # whatever a test gives
