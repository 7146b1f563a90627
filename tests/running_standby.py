"""An agent that lives in the test's own process, with a bot that does what the test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from backend.agent import process
from backend.agent.briefing import Briefing, Command, Link
from backend.agent.own_room import OwnRoom
from backend.agent.standby import Standby
from backend.common import keys
from backend.common.contract import Agent, EndReason, Order
from backend.common.settings import LauncherSettings
from tests.integration.desk import Desk
from tests.waiting import wait_until_async

ME = Agent(id="me", nonce="nonce-me", host_id="h", pid=4711)


@dataclass
class FakeBot:
    """Does what the test says, and notes what it was told."""

    says: Callable[[Link], Awaitable[EndReason]]
    briefing: Briefing | None = None
    link: Link | None = None
    heard: list[Command] = field(default_factory=list)
    is_running: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, briefing: Briefing, link: Link) -> EndReason:
        self.briefing, self.link = briefing, link
        listening = asyncio.ensure_future(self._listen(link))
        self.is_running.set()
        try:
            return await self.says(link)
        finally:
            listening.cancel()

    async def _listen(self, link: Link) -> None:
        async for command in link.commands():
            self.heard.append(command)


async def until_told(bot: FakeBot) -> EndReason:
    """Talk until an END comes."""
    await wait_until_async(lambda: [c for c in bot.heard if c.order is Order.END], timeout=10, what="an END comes")
    return bot.heard[-1].reason or EndReason.AGENT_LOST


@asynccontextmanager
async def living(
    settings: LauncherSettings, bot: FakeBot, own: OwnRoom | None = None
) -> AsyncIterator["asyncio.Task[int]"]:
    """Let an agent live beside the test; parked, unless it gets a room of its own."""
    (settings.host_dir / "agents").mkdir(parents=True, exist_ok=True)
    process.write_state(settings, ME)
    agent = Standby(ME, settings, own)
    life = asyncio.ensure_future(agent.live(bot))
    try:
        yield life
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await agent.close()


async def is_warm(desk: Desk) -> None:
    await wait_until_async(lambda: desk.client.zscore(keys.POOL_READY, ME.id), what="the agent is warm")
