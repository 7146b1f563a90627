"""A bot that plays a tone, as soon as it may: for measuring everything but the voice."""

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
FRAME_SAMPLES = RATE // 10
"""A whole number of periods. Each frame is a round trip into the native library: 20 ms ones cost twice as much."""
FRAME = array(
    "h",
    (round(TONE_LEVEL * 32_767 * math.sin(2 * math.pi * TONE_HZ * sample / RATE)) for sample in range(FRAME_SAMPLES)),
).tobytes()
QUEUE_MS = 100
LOOK_SECONDS = 0.1


class Tone:
    """One session of this process. ``run`` it once."""

    def __init__(self, settings: LauncherSettings, briefing: Briefing, link: Link) -> None:
        self._settings, self._briefing, self._link = settings, briefing, link
        self._room = briefing.joined or Room()
        self._jobs: list[asyncio.Task[None]] = []
        self._ended: asyncio.Future[EndReason] = asyncio.get_running_loop().create_future()

    async def run(self) -> EndReason:
        """Hold the session and return why it ended."""
        self._room.on("disconnected", lambda: self._end(EndReason.ROOM_LOST))
        try:
            await self._room.join(self._briefing.livekit_url, self._briefing.room_token)
            if await self._link.confirm():
                await self._talk()
            else:
                self._end(EndReason.AGENT_LOST)
        except RoomGoneError:
            self._end(EndReason.ROOM_LOST)
        except RoomNotJoinedError as error:
            logger.warning("the room could not be joined", cause=str(error))
            self._end(EndReason.AGENT_LOST)
        await self._room.leave()
        return await self._ended

    async def _talk(self) -> None:
        for work in (self._sound(), self._obey(), self._wait_for_caller()):
            self._start(work)
        reason = await asyncio.shield(self._ended)
        if reason not in (EndReason.AGENT_LOST, EndReason.AGENT_FAULT):
            await self._link.end(reason)
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    async def _sound(self) -> None:
        if self._briefing.was_awaited:  # a track costs a part of a core: not for who gave up waiting
            await self._room.occupied(_is_caller, self._link.caller_came)
        source = rtc.AudioSource(RATE, 1, queue_size_ms=QUEUE_MS)
        track = rtc.LocalAudioTrack.create_audio_track("tone", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        publication = await self._room.local_participant.publish_track(track, options)
        self._start(self._begin(publication))
        await self._play(source)

    async def _play(self, source: rtc.AudioSource) -> None:
        while True:
            await source.capture_frame(rtc.AudioFrame(FRAME, RATE, 1, FRAME_SAMPLES))

    async def _begin(self, publication: rtc.LocalTrackPublication) -> None:
        await publication.wait_for_subscription()
        left_seconds = await self._link.begin()
        if left_seconds is None:
            self._end(EndReason.AGENT_LOST)
        else:
            asyncio.get_running_loop().call_later(left_seconds, self._end, EndReason.TIME_LIMIT)

    async def _obey(self) -> None:
        async for command in self._link.commands():
            if command.order is Order.END:
                self._end(command.reason or EndReason.AGENT_LOST)

    async def _wait_for_caller(self) -> None:
        until, reason = time.monotonic() + self._settings.nobody_came_seconds, EndReason.NOBODY_CAME
        while time.monotonic() < until:
            if any(map(_is_caller, self._room.remote_participants)):
                until, reason = time.monotonic() + self._settings.caller_grace_seconds, EndReason.CALLER_LEFT
            await asyncio.sleep(LOOK_SECONDS)
        is_connected = self._room.connection_state == rtc.ConnectionState.CONN_CONNECTED
        self._end(reason if is_connected else EndReason.ROOM_LOST)

    def _end(self, reason: EndReason) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._jobs.append(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()):
            logger.opt(exception=error).error("the agent failed")
            self._end(EndReason.AGENT_FAULT)


def _is_caller(identity: str) -> bool:
    return identity != AGENT_IDENTITY
