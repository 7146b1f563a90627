"""The room in which a warm agent waits for its caller: joined, nothing published, nobody else in it."""

import asyncio
import random
import time

from livekit import rtc

from backend.agent.room import Room
from backend.common.contract import Agent, Assignment
from backend.common.exchange import Call, agent_arrives

CLOSES_SECONDS = 290.0
"""LiveKit closes a room 300 s after it was made, if no caller has come by then; it was made a moment ago."""
RECYCLE_SECONDS = 240.0
"""How long a warm agent stays at the most: the caller of the last moment needs time to come."""
RECYCLE_JITTER = 0.2
"""Agents that became warm together do not go together."""
BELL_SECONDS = 1.0
"""A claim of the last moment may still be on its way."""


class OwnRoom:
    """One agent's own room; without a name the agent is parked outside."""

    def __init__(self, name: str = "", token: str = "", *, nobody_came_seconds: float = 30.0) -> None:
        self._room = Room()  # starts the native runtime now: 2 ms that the claim does not pay
        self._name, self._token = name, token
        self._is_lost = asyncio.Event()
        self._leaving: asyncio.Future[None] | None = None
        jitter = random.uniform(0, RECYCLE_JITTER)  # noqa: S311  # spreads load, guards nothing
        stays_seconds = min(RECYCLE_SECONDS, CLOSES_SECONDS - nobody_came_seconds)
        self._until = time.monotonic() + stays_seconds * (1 - jitter)

    @property
    def is_wanted(self) -> bool:
        """Whether there is one."""
        return bool(self._name)

    def arrival(self, agent: Agent) -> Call[Assignment | str]:
        """Offer the agent, with the room it is in."""
        if not self.is_wanted:
            return agent_arrives(agent)
        left_ms = int(self._seconds_left() * 1000)
        return agent_arrives(agent, room=self._name, room_token=self._token, room_for_ms=left_ms)

    async def join(self, url: str) -> None:
        """Join it. Raises: RoomNotJoinedError"""
        if not self.is_wanted:
            return
        await self._room.join(url, self._token)
        # Already while it tries to come back: after a restart of LiveKit there is no room to come back to.
        self._room.on("reconnecting", self._is_lost.set)
        self._room.on("disconnected", lambda _: self._is_lost.set())

    async def over(self) -> bool:
        """Return when no caller can be sent here any more: True when the room was lost, False when it is old."""
        try:
            async with asyncio.timeout(self._seconds_left() + BELL_SECONDS):
                return await self._is_lost.wait()
        except TimeoutError:
            return False

    def for_session(self, session_id: str) -> Room | None:
        """Give the room, if it is the session's and still there; else leave it behind the back of the new call."""
        if session_id == self._name and self._room.connection_state == rtc.ConnectionState.CONN_CONNECTED:
            return self._room
        self._leaving = asyncio.ensure_future(self.leave())
        return None

    async def leave(self) -> None:
        """Leave it, so that LiveKit closes it soon."""
        if self._room.isconnected():
            await self._room.leave()

    def _seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())
