"""How a call ends: each step within bounds, whatever Redis, the vendors or the room do meanwhile."""

import asyncio
from dataclasses import dataclass, field

from loguru import logger

from backend.agent.briefing import Link
from backend.agent.pipeline import VoicePipeline
from backend.agent.room import Room
from backend.common.contract import EndReason

GOODBYE_SECONDS = 3.0
"""How long an agent may speak after the end of its session."""
FAREWELL_SECONDS = 8.0
"""A farewell belongs to the conversation, and may be longer than a goodbye."""
TELL_SECONDS = 2.0
STOP_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why a call ends, and what is still to be done about it."""

    reason: EndReason
    is_ours: bool = True
    """False: the session is another agent's, or nobody's, by now; not ours to end, nor to speak in."""
    goodbye: str = field(default="", repr=False)
    """What the caller is told; '' for nothing."""


async def tell(link: Link, ending: Ending) -> None:
    """End the session, if it is ours to end."""
    if not ending.is_ours:
        return
    try:
        async with asyncio.timeout(TELL_SECONDS):
            await link.end(ending.reason)
    except TimeoutError:
        logger.warning("the end could not be told in time", reason=ending.reason)


async def say_goodbye(pipeline: VoicePipeline | None, ending: Ending) -> None:
    """Say the last words, if there are any, and wait until they were heard."""
    if not ending.goodbye or not pipeline:
        return
    try:
        async with asyncio.timeout(GOODBYE_SECONDS):
            await pipeline.say_last(ending.goodbye)
    except TimeoutError:
        logger.warning("the goodbye was cut short", limit_seconds=GOODBYE_SECONDS)


async def let_farewell_be_heard(pipeline: VoicePipeline | None) -> None:
    """Wait until the conversation's own farewell was heard."""
    if not pipeline:
        return
    try:
        async with asyncio.timeout(FAREWELL_SECONDS):
            await pipeline.all_heard()
    except TimeoutError:
        logger.warning("the farewell was cut short", limit_seconds=FAREWELL_SECONDS)


async def leave(pipeline: VoicePipeline | None, room: Room) -> None:
    """Stop the vendors and the sound, and leave the room."""
    try:
        if pipeline:
            async with asyncio.timeout(STOP_SECONDS):
                await pipeline.stop("the call ended")
                await pipeline.is_over.wait()
    except TimeoutError:
        logger.warning("the pipeline did not stop in time", limit_seconds=STOP_SECONDS)
    await room.leave()
