"""Bots by name: what an agent runs in its session (AGENT_BOT)."""

import asyncio
import importlib
import math
import time
from array import array
from collections.abc import Callable
from functools import partial

from livekit import rtc

from backend.agent.briefing import Bot, Briefing, Link
from backend.agent.room import Room, RoomNotJoinedError
from backend.common.contract import AGENT_IDENTITY, EndReason, Order
from backend.common.settings import LauncherSettings

RATE = 48_000
TONE_HZ, TONE_LEVEL = 440, 0.3
FRAME_MS = 20


def find(name: str, settings: LauncherSettings) -> Bot:
    """Load a bot, with all that its process will need: ``voice``, ``tone`` or ``module:function``.

    Touches no event loop, no thread and no LiveKit runtime: agents are forked from here. A
    function that is named gets the settings and returns the bot.

    Raises:
        ValueError: there is no such bot; the message says what there is.
    """
    if name == "voice":
        return _voice(settings)
    if name == "tone":
        return partial(_tone, settings)
    module, _, function = name.partition(":")
    try:
        make: Callable[[LauncherSettings], Bot] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"AGENT_BOT got {name!r}: voice, tone or module:function") from error
    return make(settings)


def _voice(settings: LauncherSettings) -> Bot:
    from backend.agent import call, voices  # noqa: PLC0415  # a second of imports that other bots do without
    from backend.agent.pipeline import Models  # noqa: PLC0415

    voices.preload(settings)
    models = Models.load()

    async def hold(briefing: Briefing, link: Link) -> EndReason:
        return await call.Call(settings, briefing, link, models).run()

    return hold


async def _tone(settings: LauncherSettings, briefing: Briefing, link: Link) -> EndReason:
    """Play a tone from the first moment on: a bot for measuring everything but the voice."""
    room = Room()
    over: asyncio.Future[EndReason] = asyncio.get_running_loop().create_future()
    room.on("disconnected", lambda: _settle(over, EndReason.ROOM_LOST))
    try:
        await room.join(briefing.livekit_url, briefing.room_token)
    except RoomNotJoinedError:
        return EndReason.ROOM_LOST
    if not await link.confirm():
        await room.disconnect()
        return EndReason.AGENT_LOST
    jobs = [
        asyncio.ensure_future(job)
        for job in (_play(room, link), _obey(link, over), _wait_for_caller(room, settings, over))
    ]
    for job in jobs:
        job.add_done_callback(partial(_fail, over))
    reason = await over
    await link.end(reason)
    for job in jobs:
        job.cancel()
    await room.disconnect()
    return reason


async def _play(room: Room, link: Link) -> None:
    source = rtc.AudioSource(RATE, 1, queue_size_ms=100)
    track = rtc.LocalAudioTrack.create_audio_track("tone", source)
    options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    publication = await room.local_participant.publish_track(track, options)
    beginning = asyncio.ensure_future(_begin(publication, link))
    samples = RATE * FRAME_MS // 1000  # 440 Hz fits a whole number of times into a tenth of a second
    wave = array(
        "h", (round(TONE_LEVEL * 32767 * math.sin(2 * math.pi * TONE_HZ * i / RATE)) for i in range(RATE // 10))
    )
    try:
        while not (beginning.done() and beginning.exception()):
            for start in range(0, len(wave), samples):
                part = wave[start : start + samples].tobytes()
                await source.capture_frame(rtc.AudioFrame(part, RATE, 1, samples))
        beginning.result()
    finally:
        beginning.cancel()


async def _begin(publication: rtc.LocalTrackPublication, link: Link) -> None:
    await publication.wait_for_subscription()
    await link.begin()


async def _obey(link: Link, over: "asyncio.Future[EndReason]") -> None:
    async for command in link.commands():
        if command.order is Order.END:
            _settle(over, command.reason or EndReason.AGENT_LOST)


async def _wait_for_caller(room: Room, settings: LauncherSettings, over: "asyncio.Future[EndReason]") -> None:
    until, reason = time.monotonic() + settings.nobody_came_seconds, EndReason.NOBODY_CAME
    while time.monotonic() < until:
        if any(identity != AGENT_IDENTITY for identity in room.remote_participants):
            until, reason = time.monotonic() + settings.caller_grace_seconds, EndReason.CALLER_LEFT
        await asyncio.sleep(0.1)
    _settle(over, reason)


def _fail(over: "asyncio.Future[EndReason]", job: "asyncio.Future[None]") -> None:
    if not job.cancelled() and job.exception():
        _settle(over, EndReason.AGENT_FAULT)


def _settle(over: "asyncio.Future[EndReason]", reason: EndReason) -> None:
    if not over.done():
        over.set_result(reason)
