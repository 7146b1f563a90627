"""What the use cases work with, made once per process and event loop."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TypeVar

from celery import Celery
from loguru import logger

from backend.common.contract import Arrival
from backend.common.exchange import Call, Exchange
from backend.common.limits import Limits
from backend.common.settings import ApiSettings, OrchestratorSettings
from backend.orchestrator.commands import Commands
from backend.orchestrator.rooms import Rooms
from backend.orchestrator.store import Store
from backend.orchestrator.turns import Turns

Reply = TypeVar("Reply")


@dataclass(frozen=True, kw_only=True)
class House:
    """The collaborators of lifecycle and upkeep."""

    settings: OrchestratorSettings
    store: Store
    exchange: Exchange
    limits: Limits
    rooms: Rooms
    commands: Commands
    max_waiting: int = 0
    """Most sessions in the line; only the API admits any."""
    max_sessions_per_user: int = 0
    on_claimed: Callable[[float], None] = lambda _seconds: None
    """Is told how long Redis took to answer each start."""
    _background: set["asyncio.Future[None]"] = field(default_factory=set)
    turns: Turns = field(default_factory=Turns)

    async def run(self, call: Call[Reply]) -> Reply:
        """Make one call of the exchange. Raises: redis.RedisError"""
        return await self.exchange.run(self.store.client, call)

    async def claim(self, call: Call[Arrival]) -> Arrival:
        """Let a session arrive, and tell how long it took. Raises: redis.RedisError"""
        before = time.perf_counter()
        arrival = await self.run(call)
        self.on_claimed(time.perf_counter() - before)
        return arrival

    def in_background(self, work: Coroutine[None, None, None]) -> None:
        """Do what nobody waits for; a room that stays because of a fault is found by the reconcile."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Future[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("background work failed", error=type(error).__name__)

    async def close(self) -> None:
        """Close every connection."""
        await self.commands.close()
        await self.rooms.close()
        await self.store.close()


def open_house(settings: OrchestratorSettings, app: Celery) -> House:
    """Make the collaborators; call it inside the loop that will use them."""
    limits = Limits.waiting_at_most(settings.bot_startup_timeout_seconds)
    return House(
        settings=settings,
        store=Store(settings),
        exchange=Exchange(limits=limits),
        limits=limits,
        rooms=Rooms(settings),
        commands=Commands(app),
        max_waiting=settings.max_waiting if isinstance(settings, ApiSettings) else 0,
        max_sessions_per_user=settings.max_sessions_per_user if isinstance(settings, ApiSettings) else 0,
    )
