"""A bot that plays a tone from the first moment on: for measuring everything but the voice."""

import asyncio
import math
import time
from array import array
from collections.abc import Coroutine

from livekit import rtc
from loguru import logger

from backend.agent.briefing import Briefing, Link
from backend.agent.room import Room, RoomGoneError, RoomNotJoinedError
from backend.common.contract import AGENT_IDENTITY, EndReason, Order
from backend.common.settings import LauncherSettings

RATE = 48_000
TONE_HZ, TONE_LEVEL = 440, 0.3
FRAME_SAMPLES = RATE // 50
PERIOD_SAMPLES = RATE // 10
"""440 Hz fits a whole number of times into a tenth of a second."""
LOOK_SECONDS = 0.1


class Tone:
    """One session of this process. ``run`` it once."""

    def __init__(self, settings: LauncherSettings, briefing: Briefing, link: Link) -> None:
        self._settings, self._briefing, self._link = settings, briefing, link
        self._room = briefing.joined or Room()
        self._ended: asyncio.Future[EndReason] = asyncio.get_running_loop().create_future()

    async def run(self) -> EndReason:
        """Hold the session and return why it ended."""
        self._room.on("disconnected", lambda: self._end(EndReason.ROOM_LOST))
        try:
            await self._room.join(self._briefing.livekit_url, self._briefing.room_token)
            if await self._link.confirm():
                await self._sound()
            else:
                self._end(EndReason.AGENT_LOST)
        except RoomGoneError:
            self._end(EndReason.ROOM_LOST)
        except RoomNotJoinedError as error:
            logger.warning("the room could not be joined", cause=str(error))
            self._end(EndReason.AGENT_LOST)
        await self._room.leave()
        return await self._ended

    async def _sound(self) -> None:
        source = rtc.AudioSource(RATE, 1, queue_size_ms=100)
        track = rtc.LocalAudioTrack.create_audio_track("tone", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        publication = await self._room.local_participant.publish_track(track, options)
        jobs = [
            self._start(job)
            for job in (self._play(source), self._begin(publication), self._obey(), self._wait_for_caller())
        ]
        reason = await asyncio.shield(self._ended)
        if reason not in (EndReason.AGENT_LOST, EndReason.AGENT_FAULT):
            await self._link.end(reason)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def _play(self, source: rtc.AudioSource) -> None:
        angles = (2 * math.pi * TONE_HZ * sample / RATE for sample in range(PERIOD_SAMPLES))
        period = array("h", (round(TONE_LEVEL * 32_767 * math.sin(angle)) for angle in angles))
        while True:
            for start in range(0, PERIOD_SAMPLES, FRAME_SAMPLES):
                part = period[start : start + FRAME_SAMPLES].tobytes()
                await source.capture_frame(rtc.AudioFrame(part, RATE, 1, FRAME_SAMPLES))

    async def _begin(self, publication: rtc.LocalTrackPublication) -> None:
        await publication.wait_for_subscription()
        if await self._link.begin() is None:
            self._end(EndReason.AGENT_LOST)

    async def _obey(self) -> None:
        async for command in self._link.commands():
            if command.order is Order.END:
                self._end(command.reason or EndReason.AGENT_LOST)

    async def _wait_for_caller(self) -> None:
        until, reason = time.monotonic() + self._settings.nobody_came_seconds, EndReason.NOBODY_CAME
        while time.monotonic() < until:
            if any(identity != AGENT_IDENTITY for identity in self._room.remote_participants):
                until, reason = time.monotonic() + self._settings.caller_grace_seconds, EndReason.CALLER_LEFT
            await asyncio.sleep(LOOK_SECONDS)
        self._end(reason)

    def _end(self, reason: EndReason) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    def _start(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()):
            logger.opt(exception=error).error("the agent failed")
            self._end(EndReason.AGENT_FAULT)
