"""LiveKit: tokens, and rooms made and deleted by us. Every call has a timeout and a bounded retry."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import aiohttp
from google.protobuf.message import DecodeError
from livekit import api
from loguru import logger

from backend.common.contract import AGENT_IDENTITY
from backend.common.settings import OrchestratorSettings
from backend.orchestrator.errors import LiveKitAwayError, UnauthorizedError

Reply = TypeVar("Reply")

BROKEN = (aiohttp.ClientError, OSError, DecodeError)
"""What a connection fails with; the last one is the answer of what is no LiveKit server."""

CALL_SECONDS = 2.5
"""All tries together, where nothing is answered. A server that is well answers in 2-4 ms."""
BUSY_SECONDS = 6.0
"""The same for a room while the server goes on making others: it is busy, and a caller rather waits than is refused.
With a start's turn and its second for Redis less than the 10 s after which clients give up."""
AGAIN_SECONDS = 1.1
"""After so long without an answer a second request is sent, and the first one still counts: a server that is only
busy would have to do the work of a request that is given up twice."""
PAUSE_SECONDS = 0.1
MADE_AT_ONCE = 16
"""Rooms asked for at a time: a burst is then served one after the other, instead of each by a part of the server."""
CALLER_TOKEN = timedelta(seconds=120)
"""Long enough to ask for the microphone; LiveKit renews the token of who has joined."""
EMPTY_TIMEOUT_SECONDS = 300
"""A room that nobody joined closes by itself; a lone agent does not stop this clock."""
DEPARTURE_TIMEOUT_SECONDS = 20
"""The caller's 10 s to come back, and 10."""
AGENT_TOKEN_SLACK = timedelta(minutes=15)
"""For the time that a warm agent waits in its room, and for a late successor."""


@dataclass(frozen=True, kw_only=True)
class RoomInfo:
    """One room of the LiveKit server."""

    name: str
    created_at_seconds: int
    is_ours: bool
    """Whether this deployment made it."""


class _Patience:
    """How long rooms are waited for: until the server has made none for ``CALL_SECONDS``, ``BUSY_SECONDS`` at most."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Timeout, float] = {}
        """When each is given up at the latest, by the loop's clock."""

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for one of them. Raises: TimeoutError"""
        now = asyncio.get_running_loop().time
        async with asyncio.timeout(CALL_SECONDS) as bound:
            self._waiting[bound] = now() + BUSY_SECONDS
            try:
                yield
            finally:
                del self._waiting[bound]
        for other, latest in self._waiting.items():
            if not other.expired():
                other.reschedule(min(latest, now() + CALL_SECONDS))


class Rooms:
    """The LiveKit server of this deployment. Make it inside a running loop; ``close`` it there."""

    def __init__(self, settings: OrchestratorSettings) -> None:
        self._key = settings.livekit_api_key
        self._secret = settings.livekit_api_secret.get_secret_value()
        self._longest = timedelta(milliseconds=settings.session_timeout_ms)
        self._metadata = json.dumps({"greenroom": settings.deployment_id or _mark(settings)})
        self.on_made: Callable[[float], None] = lambda _seconds: None
        """Is told how long each room took."""
        self._service = api.LiveKitAPI(settings.livekit_url, self._key, self._secret)
        self._making, self._patience = asyncio.Semaphore(MADE_AT_ONCE), _Patience()
        self._webhooks = api.WebhookReceiver(api.TokenVerifier(self._key, self._secret))

    async def close(self) -> None:
        """Close the connections."""
        await self._service.aclose()

    def caller_token(self, session_id: str, identity: str, name: str) -> str:
        """For one caller: this room, the microphone, typed messages; nothing else."""
        token = self._token(identity, _grants(session_id))
        return token.with_name(name).with_ttl(CALLER_TOKEN).to_jwt()

    def agent_token(self, session_id: str) -> str:
        """For the session's agents, one after the other: it outlives the session, so that a successor can join."""
        token = self._token(AGENT_IDENTITY, _grants(session_id, can_update_own_metadata=True)).with_kind("agent")
        return token.with_ttl(self._longest + AGENT_TOKEN_SLACK).to_jwt()

    def verify(self, body: str, token: str) -> api.WebhookEvent:
        """Read a webhook that LiveKit signed: the token holds the hash of these very bytes.

        Raises: UnauthorizedError for any doubt
        """
        try:
            event: api.WebhookEvent = self._webhooks.receive(body, token)
        except Exception as error:  # the library raises Exception itself, PyJWT's and protobuf's errors
            logger.warning("a webhook was refused", error=type(error).__name__)
            raise UnauthorizedError("This webhook is not signed by our LiveKit server") from None
        return event

    async def create(self, session_id: str) -> None:
        """Make the session's room; one that exists stays as it is.

        Raises: LiveKitAwayError when LiveKit does not do it in time.
        """
        request = api.CreateRoomRequest(
            name=session_id,
            empty_timeout=EMPTY_TIMEOUT_SECONDS,
            departure_timeout=DEPARTURE_TIMEOUT_SECONDS,
            metadata=self._metadata,
        )
        before = time.perf_counter()
        await self._ask(lambda: self._service.room.create_room(request), bound=self._turn())
        self.on_made(time.perf_counter() - before)

    async def delete(self, session_id: str) -> None:
        """Close the session's room and put everyone out; none there is success.

        Raises: LiveKitAwayError when LiveKit does not do it in time.
        """

        async def delete_if_there() -> None:
            try:
                await self._service.room.delete_room(api.DeleteRoomRequest(room=session_id))
            except api.ServerError as error:
                if error.code != "not_found":
                    raise

        await self._ask(delete_if_there)

    async def list_ours(self) -> list[RoomInfo]:
        """Every room of this deployment.

        Raises: LiveKitAwayError when LiveKit does not answer in time.
        """
        return [room for room in await self.list_all() if room.is_ours]

    async def list_all(self) -> list[RoomInfo]:
        """Every room of the LiveKit server.

        Raises: LiveKitAwayError when LiveKit does not answer in time.
        """
        reply = await self._ask(lambda: self._service.room.list_rooms(api.ListRoomsRequest()))
        return [
            RoomInfo(name=room.name, created_at_seconds=room.creation_time, is_ours=room.metadata == self._metadata)
            for room in reply.rooms
        ]

    async def ping(self) -> None:
        """Return when LiveKit answers and accepts our key.

        Raises: LiveKitAwayError
        """
        request = api.ListRoomsRequest(names=["-"])  # no such room: the shortest answer
        await self._ask(lambda: self._service.room.list_rooms(request))

    def _token(self, identity: str, grants: api.VideoGrants) -> api.AccessToken:
        return api.AccessToken(self._key, self._secret).with_identity(identity).with_grants(grants)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for one's turn to make a room, and bound all of it."""
        async with self._patience.one(), self._making:
            yield

    async def _ask(
        self, call: Callable[[], Awaitable[Reply]], *, bound: AbstractAsyncContextManager[object] | None = None
    ) -> Reply:
        try:
            # The library's own timeout= does nothing (1.2.2), so the bound is here.
            async with bound or asyncio.timeout(CALL_SECONDS):
                return await _insist(call)
        except (TimeoutError, api.ServerError, *BROKEN) as error:
            if isinstance(error, api.ServerError) and error.status < 500:
                logger.error("LiveKit refuses us: check LIVEKIT_URL, _API_KEY and _API_SECRET", code=error.code)
                raise LiveKitAwayError("LiveKit refuses this server's requests: tell its operator") from None
            logger.warning("LiveKit does not answer", error=type(error).__name__)
            raise LiveKitAwayError(
                "LiveKit does not answer: try again in a few seconds", retry_after_seconds=5
            ) from None


async def _insist(call: Callable[[], Awaitable[Reply]]) -> Reply:
    """Ask, and once more after a fault that may pass."""
    try:
        return await _sooner_of_two(call)
    except (api.ServerError, *BROKEN) as error:
        if isinstance(error, api.ServerError) and error.status < 500:
            raise
    await asyncio.sleep(PAUSE_SECONDS)
    return await _sooner_of_two(call)


async def _sooner_of_two(call: Callable[[], Awaitable[Reply]]) -> Reply:
    """Ask, and a second time when no answer comes soon; whichever is answered first."""
    asked = [asyncio.ensure_future(call())]
    try:
        done, _ = await asyncio.wait(asked, timeout=AGAIN_SECONDS)
        if not done:
            asked.append(asyncio.ensure_future(call()))
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in asked:
            task.cancel()


def _mark(settings: OrchestratorSettings) -> str:
    """Tell deployments apart that share a LiveKit server: each has a Redis of its own. Callers can read the mark."""
    secret, url = settings.livekit_api_secret.get_secret_value(), settings.redis_url
    return hmac.new(secret.encode(), str(url).encode(), "sha256").hexdigest()[:16]


def _grants(session_id: str, *, can_update_own_metadata: bool = False) -> api.VideoGrants:
    """What both sides of a call may do in its room; the agent also shows its state."""
    return api.VideoGrants(
        room_join=True,
        room=session_id,
        can_publish=True,
        can_publish_sources=["microphone"],
        can_subscribe=True,
        can_publish_data=True,
        can_update_own_metadata=can_update_own_metadata,
    )
