"""A tone bot among whose agents some misbehave, before they are ready or in their call.

AGENT_BOT=tests.fakes.fake_misfits:misfits. What an agent does follows from MISFITS_SEED and its id; MISFITS_SHARE is
the share of those that misbehave.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping

from livekit import rtc
from loguru import logger

from backend.agent import standby
from backend.agent.briefing import Bot, Briefing, Link
from backend.agent.tone import Tone
from backend.common.contract import Agent, EndReason
from backend.common.settings import LauncherSettings

SEED, SHARE = "MISFITS_SEED", "MISFITS_SHARE"
LATE_SECONDS = 5.0
"""Of a slow start."""
TALK_SECONDS = (2.0, 8.0)
"""How long a misfit behaves in its call."""
HOG_MB, HOG_STEP_MB = 200, 20
FLOOD_SECONDS = 3.0
FOR_EVER = 600.0
"""Longer than any of these is let live."""


async def start_slowly(_: LauncherSettings) -> int | None:
    """Arrives late."""
    await asyncio.sleep(LATE_SECONDS)
    return None


async def never_be_ready(_: LauncherSettings) -> int | None:
    """Never arrives."""
    await asyncio.sleep(FOR_EVER)
    return 0


async def crash_at_the_start(_: LauncherSettings) -> int | None:
    """Fails before it arrives."""
    raise RuntimeError


async def leave_at_the_start(_: LauncherSettings) -> int | None:
    """Exits before it arrives, and says that all is well."""
    return 0


def crash() -> None:
    """Dies as of a native fault."""
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    """Exits in its call without a word, and says that all is well."""
    os._exit(0)


def block() -> None:
    """Holds its loop for ever: no sound, no heartbeat, and no end by itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(FOR_EVER)


def fork_children() -> None:
    """Starts processes and forgets them; they ignore SIGTERM."""
    code = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep({FOR_EVER})"
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL)


async def hog() -> None:
    """Takes memory, and uses it."""
    taken = []
    for _ in range(HOG_MB // HOG_STEP_MB):
        taken.append(bytearray(os.urandom(4096)) * (HOG_STEP_MB * 256))
        await asyncio.sleep(0.1)
    await asyncio.sleep(FOR_EVER)


async def flood() -> None:
    """Logs, and writes to its standard error, as fast as it goes."""
    until = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < until:
        logger.warning("an agent floods its log")
        os.write(2, b"noise " * 100 + b"\n")
        await asyncio.sleep(0)


class Mute(Tone):
    """Falls silent after a while, and goes on answering."""

    async def _play(self, source: rtc.AudioSource) -> None:
        playing = asyncio.ensure_future(super()._play(source))
        await asyncio.sleep(random.uniform(*TALK_SECONDS))  # noqa: S311  # a test's
        playing.cancel()


AT_THE_START: dict[str, Callable[[LauncherSettings], Awaitable[int | None]]] = {
    "slow start": start_slowly,
    "never ready": never_be_ready,
    "crash before ready": crash_at_the_start,
    "exits 0 before ready": leave_at_the_start,
}
IN_THE_CALL: dict[str, Callable[[], Awaitable[None] | None]] = {
    "crash in the call": crash,
    "exits 0 in the call": leave,
    "blocked loop": block,
    "forks grandchildren": fork_children,
    "memory hog": hog,
    "log flood": flood,
}
KINDS = (*AT_THE_START, *IN_THE_CALL, "ignores TERM", "wedged but answers")


def kind_of(agent_id: str, variables: Mapping[str, str]) -> str:
    """What this agent will do, by MISFITS_SEED and MISFITS_SHARE; '' when it behaves."""
    draw = random.Random(f"{variables[SEED]} {agent_id}")  # noqa: S311  # a test's
    return draw.choice(KINDS) if draw.random() < float(variables[SHARE]) else ""


def misfits(settings: LauncherSettings) -> Bot:
    """Load the bot; from here on this image's agents may also fail before they arrive."""
    well = standby.serve

    async def serve(agent: Agent, bot: Bot, settings: LauncherSettings, *, room: str = "", room_token: str = "") -> int:
        kind = kind_of(agent.id, os.environ)
        if kind:
            logger.info("a misfit starts", kind=kind)
        code = await AT_THE_START[kind](settings) if kind in AT_THE_START else None
        return await well(agent, bot, settings, room=room, room_token=room_token) if code is None else code

    standby.serve = serve

    async def hold(briefing: Briefing, link: Link) -> EndReason:
        kind = kind_of(briefing.agent_id, os.environ)
        trouble = asyncio.ensure_future(_trouble(kind))
        try:
            return await (Mute if kind == "wedged but answers" else Tone)(settings, briefing, link).run()
        finally:
            trouble.cancel()
            if kind == "ignores TERM":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(FOR_EVER)  # noqa: ASYNC251  # it is to hang

    return hold


async def _trouble(kind: str) -> None:
    if kind not in IN_THE_CALL:
        return
    await asyncio.sleep(random.uniform(*TALK_SECONDS))  # noqa: S311  # a test's
    waited_for = IN_THE_CALL[kind]()
    if waited_for:
        await waited_for
