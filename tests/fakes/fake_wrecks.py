"""The product's own bot, which dies of what a test writes into ``<RUN_DIR>/<session id>.wreck``, on SIGUSR1."""

import asyncio
import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable

from backend.agent import bots
from backend.agent.briefing import Bot, Briefing, Link
from backend.agent.room import JoinedClient
from backend.agent.rules import Clock
from backend.agent.tone import Tone
from backend.common.contract import EndReason
from backend.common.settings import LauncherSettings


def leave_at_once() -> None:
    """End as ``os._exit`` does: no handler, no goodbye."""
    os._exit(3)


def fail() -> None:
    """Let the next look at the clock raise."""
    _replace(Clock, "look", lambda *_, **__: 1 / 0)


def run_out_of_memory() -> None:
    """Let the next look at the clock want more than there is."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    _replace(Clock, "look", lambda *_, **__: bytearray(1 << 34))


def crash() -> None:
    """Die as native code does that reads where nothing is."""
    ctypes.string_at(0)


def block_the_loop() -> None:
    """Never give the loop back."""
    time.sleep(600)


def get_stuck() -> None:
    """Let the sound go nowhere, while the loop goes on."""

    async def hang(*_: object) -> bool:
        await asyncio.Event().wait()
        return True

    _replace(JoinedClient, "publish_audio", hang)


def _replace(kind: type, name: str, function: Callable[..., object]) -> None:
    setattr(kind, name, function)


WRECKS: dict[str, Callable[[], None]] = {
    wreck.__name__: wreck for wreck in (leave_at_once, fail, run_out_of_memory, crash, block_the_loop, get_stuck)
}


def voice(settings: LauncherSettings) -> Bot:
    """Load the product's bot."""
    bot = bots.voice(settings)

    async def hold(briefing: Briefing, link: Link) -> EndReason:
        def die() -> None:
            WRECKS[(settings.run_dir / f"{briefing.session_id}.wreck").read_text()]()

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, die)
        return await bot(briefing, link)

    return hold


class Deaf(Tone):
    """Plays on whatever it is told, and then does not even give the loop back."""

    def _end(self, _: EndReason) -> None:
        block_the_loop()


def deaf(settings: LauncherSettings) -> Bot:
    """Load the bot that never ends."""

    async def hold(briefing: Briefing, link: Link) -> EndReason:
        return await Deaf(settings, briefing, link).run()

    return hold
