"""One agent alone, without Redis: for trying a bot in a room of one's own. Greenroom itself never starts agents so."""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from loguru import logger
from pydantic import ValidationError

from backend.agent import bots
from backend.agent.briefing import Bot, Briefing, Command, Turn
from backend.agent.stages import Stages
from backend.agent.standby import exit_code
from backend.common import logs, stalls
from backend.common.contract import EndReason, Progress
from backend.common.settings import LauncherSettings, explain

FROM_STDIN = "-"
"""In place of the token: whoever can list processes can read arguments."""


class LoneLink:
    """Implements ``Link`` for an agent that nobody watches: it may always speak, and nobody sends commands."""

    def __init__(self, longest_seconds: float) -> None:
        self.progress: Callable[[], Progress] = Progress
        self.stages = Stages()
        self._longest_seconds = longest_seconds

    async def confirm(self) -> bool:
        """Yes."""
        return True

    async def caller_came(self) -> bool:
        """Nobody can know."""
        return False

    async def begin(self) -> float | None:
        """All of the time is left."""
        return self._longest_seconds

    async def record(self, turn: Turn) -> None:
        """There is no successor who would need it."""

    async def end(self, reason: EndReason) -> None:
        """There is no record that would end."""

    async def commands(self) -> AsyncIterator[Command]:
        """Yield nothing, for ever."""
        await asyncio.Event().wait()
        yield  # type: ignore[misc]  # never reached; it makes this a generator


def main(arguments: Sequence[str]) -> int:
    """Run one call; returns the exit code."""
    parser = _parser()
    wishes = parser.parse_args(arguments)
    try:
        # By variable: the agent's settings are those of the launcher, and that one must know the server.
        settings = LauncherSettings.model_validate({"LIVEKIT_URL": wishes.url})
    except ValidationError as error:
        problems = error.errors(include_context=False, include_url=False)
        parser.error("; ".join(explain(LauncherSettings, problem) for problem in problems))
    logs.configure(settings, program="agent")
    logger.configure(extra={"program": "agent", "host_id": settings.host_id, "session_id": wishes.session_id})
    if wishes.token == FROM_STDIN:
        wishes.token = sys.stdin.readline().strip()
    briefing = _briefing(wishes, settings)
    try:
        bot = bots.find(settings.agent_bot, settings)
    except ValueError as error:
        parser.error(str(error))
    reason = stalls.run(_hold(bot, briefing))
    logger.info("the agent ends", reason=reason, exit_code=exit_code(reason))
    return exit_code(reason)


async def _hold(bot: Bot, briefing: Briefing) -> EndReason:
    return await bot(briefing, LoneLink(briefing.longest_seconds))


def _briefing(wishes: argparse.Namespace, settings: LauncherSettings) -> Briefing:
    longest_seconds = settings.session_timeout_ms / 1000
    return Briefing(
        session_id=wishes.session_id,
        generation=1,
        agent_id=f"alone-{os.getpid()}",
        host_id=settings.host_id,
        livekit_url=settings.livekit_url,
        room_token=wishes.token,
        user_name=wishes.user_name,
        voice_id=wishes.voice_id,
        opening_line=wishes.opening_line,
        system_prompt=wishes.system_prompt_file.read_text("utf-8") if wishes.system_prompt_file else "",
        longest_seconds=min(wishes.max_duration or longest_seconds, longest_seconds),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backend.agent", description=__doc__)
    parser.add_argument("--url", required=True, help="LiveKit server, ws:// or wss://")
    parser.add_argument("--token", required=True, help="the agent's room token; - reads it from standard input")
    parser.add_argument("--session-id", required=True, help="the room's name")
    parser.add_argument("--user-name", default="", help="the caller's name")
    parser.add_argument("--voice-id", default="Ashley", help="the voice (Ashley)")
    parser.add_argument("--opening-line", default="", help="the first words; unset: the bot's own")
    parser.add_argument("--system-prompt-file", type=Path, help="a file with the system prompt; unset: the default one")
    parser.add_argument("--max-duration", type=float, help="longest call, seconds; unset: SESSION_TIMEOUT")
    return parser
