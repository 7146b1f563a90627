"""A bot at work in the test's own process, in a room of a real LiveKit server, and its caller."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

from backend.agent import bots
from backend.agent import call as call_module
from backend.agent.briefing import Briefing
from backend.common.contract import EndReason, Order
from backend.common.settings import LauncherSettings
from tests.fakes.fake_caller import FakeCaller
from tests.fakes.fake_link import FakeLink
from tests.livekit_server import CALLER, DEPARTURE_TIMEOUT_SECONDS, LiveKitServer

OPENING = "Hello there."
PLAIN = {"voice": "demo", "opening_line_cache_mb": 0}
"""What a test does not say otherwise."""


class NoWatchdog:
    """Here the agent is not alone in its process, which must not end with it."""

    def __init__(self, _: object) -> None:
        pass

    def arm(self, _: float) -> None:
        """Do nothing."""

    async def stay_watched(self, _: object) -> None:
        """Do nothing."""


class Running:
    """A bot at work in this process, and its caller."""

    def __init__(self, server: LiveKitServer, room: str, link: FakeLink, bot: "asyncio.Task[EndReason]") -> None:
        self.server, self.room, self.link, self.bot = server, room, link, bot
        self.caller = FakeCaller()
        self.started_at = time.monotonic()

    async def caller_joins(self, *, with_microphone: bool = True) -> FakeCaller:
        """Bring the caller in; a second time: a new client of the same caller."""
        token = self.server.token(self.room, CALLER)
        await self.caller.join(self.server.url, token, with_microphone=with_microphone)
        return self.caller

    async def caller_is_greeted(self) -> FakeCaller:
        """Bring the caller in, and wait until the opening line is over."""
        await self.caller_joins()
        await self.caller.utterance()
        return self.caller

    async def reason(self, *, within: float) -> EndReason:
        """Wait for the end."""
        async with asyncio.timeout(within):
            return await asyncio.shield(self.bot)


@asynccontextmanager
async def a_call(server: LiveKitServer, link: FakeLink | None = None, **wishes: Any) -> AsyncIterator[Running]:
    """Start a bot in a fresh room; ``wishes`` are fields of the settings, or of the briefing."""
    link, room = link or FakeLink(), wishes.pop("room", "") or f"session_{uuid.uuid4().hex[:12]}"
    departure_timeout = wishes.pop("departure_timeout", DEPARTURE_TIMEOUT_SECONDS)
    url = wishes.pop("url", server.url)
    if not wishes.pop("is_room_late", False):
        await server.create_room(room, departure_timeout=departure_timeout)
    fields = {name: wishes.pop(name) for name in list(wishes) if name in LauncherSettings.model_fields}
    settings = LauncherSettings.model_validate({**PLAIN, "livekit_url": server.url, **fields})
    known = {"longest_seconds": 600.0, "opening_line": OPENING, "caller_identity": CALLER, **wishes}
    briefing = Briefing(
        session_id=room,
        generation=1,
        agent_id="agent-1",
        host_id="host-1",
        livekit_url=url,
        room_token=server.agent_token(room),
        **known,
    )
    with patch.object(call_module, "Watchdog", NoWatchdog):
        bot = asyncio.ensure_future(bots.find(settings.agent_bot, settings)(briefing, link))
        call = Running(server, room, link, bot)
        try:
            yield call
        finally:
            await call.caller.leave()
            link.tell(Order.END)  # without a word
            async with asyncio.timeout(10):
                await asyncio.gather(bot, return_exceptions=True)
