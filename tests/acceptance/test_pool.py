"""The pool under a burst, agents that are spawned, and a stop that leaves nothing."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from livekit import api

from tests.acceptance.house import House
from tests.fakes.fake_caller import FakeCaller
from tests.livekit_server import LiveKitServer
from tests.waiting import wait_until

BURST = 8


@pytest.fixture
def livekit(tmp_path: Path) -> Iterator[LiveKitServer]:
    """Give a LiveKit server that outlives the product."""
    server = LiveKitServer(tmp_path)
    server.start()
    yield server
    server.kill()


def house_on(livekit: LiveKitServer, **variables: str) -> House:
    """Make a house that uses this LiveKit server."""
    given = {"LIVEKIT_URL": livekit.url, "LIVEKIT_API_KEY": livekit.key, "LIVEKIT_API_SECRET": livekit.secret}
    return House(AGENT_BOT="tone", MAX_BOTS=str(BURST + 2), **given, **variables)


@pytest.mark.alone
async def test_a_burst_beyond_the_pool_is_served_as_agents_come(livekit: LiveKitServer) -> None:
    house = house_on(livekit)
    try:
        await asyncio.to_thread(house.start)
        starts = [
            asyncio.to_thread(house.post, "/orchestrator/session/start", {"userName": f"user {number}"})
            for number in range(BURST)
        ]
        sessions = [answer["sessionId"] for answer in await asyncio.gather(*starts)]
        assert len(set(sessions)) == BURST

        def agents() -> set[str]:
            shown = [house.get(f"/orchestrator/session/{session_id}") for session_id in sessions]
            return {session["agentId"] for session in shown if session["agentPid"]}

        await asyncio.to_thread(wait_until, lambda: len(agents()) == BURST, timeout=40, what="everyone has an agent")
    finally:
        await asyncio.to_thread(house.stop)
    async with livekit.api() as service:
        assert not (await service.room.list_rooms(api.ListRoomsRequest())).rooms


async def test_a_stop_during_a_call_ends_it_and_leaves_no_process_and_no_room(livekit: LiveKitServer) -> None:
    house = house_on(livekit)
    try:
        await asyncio.to_thread(house.start)
        started = await asyncio.to_thread(house.post, "/orchestrator/session/start", {"userName": "ada"})
        async with FakeCaller() as caller:
            await caller.join(started["serverUrl"], started["token"])
            await caller.sound(timeout=20)
            await asyncio.to_thread(house.stop, signal.SIGTERM)
            await asyncio.wait_for(caller.is_out.wait(), timeout=20)
        await asyncio.to_thread(house.start)
        shown = await asyncio.to_thread(house.get, f"/orchestrator/session/{started['sessionId']}")
        assert (shown["status"], shown["endReason"], shown["endedBy"]) == ("ended", "shutdown", "platform")
    finally:
        await asyncio.to_thread(house.discard)


async def test_after_a_restart_of_livekit_every_warm_agent_is_a_new_one_and_takes_calls(livekit: LiveKitServer) -> None:
    house = house_on(livekit)
    try:
        await asyncio.to_thread(house.start)
        before = house.agents()
        livekit.kill()
        await asyncio.to_thread(livekit.start)
        await asyncio.to_thread(
            wait_until,
            lambda: house.is_warm() and not before & house.agents(),
            timeout=40,
            what="the pool is a new one",
        )
        started = await asyncio.to_thread(house.post, "/orchestrator/session/start", {"userName": "ada"})
        assert started["status"] == "assigned"
        async with FakeCaller() as caller:
            await caller.join(started["serverUrl"], started["token"])
            await caller.sound(timeout=20)
    finally:
        await asyncio.to_thread(house.discard)


async def test_agents_that_are_spawned_hold_calls_too(livekit: LiveKitServer) -> None:
    house = house_on(livekit, AGENT_START_METHOD="spawn")
    try:
        await asyncio.to_thread(house.start)
        started = await asyncio.to_thread(house.post, "/orchestrator/session/start", {"userName": "ada"})
        async with FakeCaller() as caller:
            await caller.join(started["serverUrl"], started["token"])
            await caller.sound(timeout=20)
            await asyncio.to_thread(house.post, "/orchestrator/session/end", {"sessionId": started["sessionId"]})
            await asyncio.wait_for(caller.is_out.wait(), timeout=20)
    finally:
        await asyncio.to_thread(house.discard)
