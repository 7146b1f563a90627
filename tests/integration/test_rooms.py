"""Rooms on a real LiveKit server, and what happens when it is not one."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from livekit import api as livekit_api
from livekit import rtc

from backend.orchestrator.errors import LiveKitAwayError
from backend.orchestrator.house import House
from backend.orchestrator.rooms import (
    AGAIN_SECONDS,
    BUSY_SECONDS,
    CALL_SECONDS,
    DEPARTURE_TIMEOUT_SECONDS,
    EMPTY_TIMEOUT_SECONDS,
    MADE_AT_ONCE,
    Rooms,
)
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import silent_server
from tests.livekit_server import LiveKitServer
from tests.valkey_server import free_port

ROOM = "session_1762018728198_00000000000000aa"
GIVEN_UP_SECONDS = 2.9
"""All tries together have 2.5 s; every start is answered in 3 s."""


async def find(livekit: LiveKitServer, name: str) -> Any:
    """The room as the server has it; None when it is not there."""
    async with livekit.api() as service:
        found = (await service.room.list_rooms(livekit_api.ListRoomsRequest(names=[name]))).rooms
    return found[0] if found else None


async def test_a_room_is_made_once_with_the_times_of_a_call(house: House, livekit: LiveKitServer) -> None:
    await house.rooms.create(ROOM)
    made = await find(livekit, ROOM)
    await house.rooms.create(ROOM)
    again = await find(livekit, ROOM)
    assert (made.empty_timeout, made.departure_timeout) == (EMPTY_TIMEOUT_SECONDS, DEPARTURE_TIMEOUT_SECONDS)
    assert again.sid == made.sid


async def test_a_room_is_deleted_however_often_it_is_asked(house: House, livekit: LiveKitServer) -> None:
    await house.rooms.create(ROOM)
    for _ in range(2):
        await house.rooms.delete(ROOM)
        assert await find(livekit, ROOM) is None


async def test_only_rooms_of_this_deployment_are_listed(house: House, livekit: LiveKitServer) -> None:
    await house.rooms.create(ROOM)
    await livekit.create_room("somebody-elses")
    (listed,) = await house.rooms.list_ours()
    assert listed.name == ROOM
    assert abs(listed.created_at_seconds - time.time()) < 10
    await house.rooms.delete(ROOM)


async def test_a_token_opens_its_room_until_that_is_deleted(house: House, livekit: LiveKitServer) -> None:
    await house.rooms.create(ROOM)
    token = house.rooms.caller_token(ROOM, "caller_1", "Ann")
    room = rtc.Room()
    await room.connect(livekit.url, token)
    assert await livekit.identities(ROOM) == {"caller_1"}
    gone = asyncio.Event()
    room.on("disconnected", lambda *_: gone.set())
    await house.rooms.delete(ROOM)
    await asyncio.wait_for(gone.wait(), 5)
    with pytest.raises(rtc.ConnectError):
        await rtc.Room().connect(livekit.url, token)


async def test_a_caller_cannot_manage_rooms_with_the_token(house: House, livekit: LiveKitServer) -> None:
    await house.rooms.create(ROOM)
    tokens = (house.rooms.caller_token(ROOM, "caller_1", "Ann"), house.rooms.agent_token(ROOM))
    asked: list[tuple[str, dict[str, str]]] = [
        ("ListRooms", {}),
        ("DeleteRoom", {"room": ROOM}),
        ("CreateRoom", {"name": "x"}),
    ]
    async with aiohttp.ClientSession(livekit.url.replace("ws", "http", 1)) as http:
        for token, (method, body) in itertools.product(tokens, asked):
            headers = {"Authorization": f"Bearer {token}"}
            async with http.post(f"/twirp/livekit.RoomService/{method}", json=body, headers=headers) as answer:
                assert answer.status in (401, 403)
    assert await find(livekit, ROOM) is not None
    await house.rooms.delete(ROOM)


# -- a server that is away, slow, or none


@asynccontextmanager
async def serving(respond: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """A server that answers everything in one way; gives its address."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"ws://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def give_up(rooms: Rooms) -> float:
    """See that every call fails in one way and in time; returns how long the slowest took."""
    slowest = 0.0
    try:
        for call in (rooms.create(ROOM), rooms.delete(ROOM), rooms.list_ours(), rooms.ping()):
            before = time.monotonic()
            with pytest.raises(LiveKitAwayError):
                await call
            slowest = max(slowest, time.monotonic() - before)
    finally:
        await rooms.close()
    return slowest


async def test_a_server_that_is_down_is_given_up(make_settings: MakeSettings) -> None:
    assert await give_up(Rooms(make_settings(livekit_url=f"ws://127.0.0.1:{free_port()}"))) < GIVEN_UP_SECONDS


async def test_a_server_that_hangs_is_given_up(make_settings: MakeSettings) -> None:
    async with silent_server() as address:
        assert await give_up(Rooms(make_settings(livekit_url=f"ws://{address}"))) < GIVEN_UP_SECONDS


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, '{"code": "internal", "msg": "x"}'),
        (503, '{"code": "unavailable", "msg": "x"}'),
        (404, '{"code": "not_found", "msg": "no such page"}'),
        (404, "<html>not a LiveKit server</html>"),
        (200, "<html>not a LiveKit server</html>"),
        (401, '{"code": "unauthenticated", "msg": "x"}'),
        (429, '{"code": "resource_exhausted", "msg": "x"}'),
    ],
)
async def test_a_server_that_answers_nonsense_is_given_up(make_settings: MakeSettings, status: int, body: str) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type="application/json")

    async with serving(respond) as url:
        rooms = Rooms(make_settings(livekit_url=url))
        try:
            for call in (rooms.create(ROOM), rooms.list_ours(), rooms.ping()):
                with pytest.raises(LiveKitAwayError):
                    await call
        finally:
            await rooms.close()


async def test_a_burst_of_rooms_is_asked_for_a_few_at_a_time_and_each_once(make_settings: MakeSettings) -> None:
    """A server with one core, which takes 20 ms for a room: asked for all at once it would answer the last first."""
    under_way, most, asked = 0, 0, 0
    core = asyncio.Lock()

    async def make(_: web.Request) -> web.Response:
        nonlocal under_way, most, asked
        under_way, asked = under_way + 1, asked + 1
        most = max(most, under_way)
        async with core:
            await asyncio.sleep(0.02)
        under_way -= 1
        return web.Response(body=livekit_api.Room().SerializeToString(), content_type="application/protobuf")

    async with serving(make) as url:
        rooms = Rooms(make_settings(livekit_url=url))
        try:
            await asyncio.gather(*(rooms.create(f"{ROOM}{number}") for number in range(60)))
        finally:
            await rooms.close()
    assert (most, asked) == (MADE_AT_ONCE, 60)


async def test_a_busy_server_is_waited_for_as_long_as_it_goes_on_making_rooms(make_settings: MakeSettings) -> None:
    """A server with one core, which takes 45 ms for a room: the last one comes after more than one call may take."""
    core = asyncio.Lock()

    async def make(_: web.Request) -> web.Response:
        async with core:
            await asyncio.sleep(0.045)
        return web.Response(body=livekit_api.Room().SerializeToString(), content_type="application/protobuf")

    async with serving(make) as url:
        rooms = Rooms(make_settings(livekit_url=url))
        began = time.monotonic()
        try:
            await asyncio.gather(*(rooms.create(f"{ROOM}{number}") for number in range(60)))
        finally:
            await rooms.close()
    assert time.monotonic() - began > CALL_SECONDS


async def test_a_busy_server_that_stops_making_rooms_is_given_up(make_settings: MakeSettings) -> None:
    made = 0

    async def make(_: web.Request) -> web.Response:
        nonlocal made
        made += 1
        await asyncio.sleep(0.1 if made <= MADE_AT_ONCE else 60)
        return web.Response(body=livekit_api.Room().SerializeToString(), content_type="application/protobuf")

    async with serving(make) as url:
        rooms = Rooms(make_settings(livekit_url=url))
        began = time.monotonic()
        try:
            tried = (rooms.create(f"{ROOM}{number}") for number in range(MADE_AT_ONCE + 4))
            given_up = await asyncio.gather(*tried, return_exceptions=True)
        finally:
            await rooms.close()
    assert [type(one) for one in given_up if one] == [LiveKitAwayError] * 4
    assert time.monotonic() - began < BUSY_SECONDS / 2


async def test_an_answer_that_comes_late_counts_and_is_not_waited_for_twice(make_settings: MakeSettings) -> None:
    """The first request takes longer than is waited before the second, which is never answered."""
    asked = 0

    async def make(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await asyncio.sleep(AGAIN_SECONDS + 0.4 if asked == 1 else 60)
        return web.Response(body=livekit_api.Room().SerializeToString(), content_type="application/protobuf")

    async with serving(make) as url:
        rooms = Rooms(make_settings(livekit_url=url))
        try:
            await rooms.create(ROOM)
        finally:
            await rooms.close()
    assert asked == 2
