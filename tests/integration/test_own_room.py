"""The room in which a warm agent waits: on a real LiveKit server and a real Valkey."""

import asyncio
import time
from pathlib import Path

import pytest
from livekit import api

from backend.agent import own_room
from backend.agent.briefing import Link
from backend.agent.own_room import OwnRoom
from backend.common import keys
from backend.common.contract import AGENT_IDENTITY, EndReason
from backend.common.limits import Limits
from backend.common.settings import LauncherSettings
from backend.orchestrator.rooms import EMPTY_TIMEOUT_SECONDS
from tests.integration.desk import Desk
from tests.livekit_server import LiveKitServer
from tests.running_standby import ME, FakeBot, is_warm, living, until_told
from tests.valkey_server import Valkey
from tests.waiting import wait_until_async


@pytest.fixture
def desk(valkey: Valkey) -> Desk:
    return Desk(valkey, Limits.waiting_at_most(30))


@pytest.fixture
def settings(valkey: Valkey, livekit: LiveKitServer, tmp_path: Path) -> LauncherSettings:
    return LauncherSettings(
        redis_url=valkey.url, host_id="h", run_dir=tmp_path, log_dir=tmp_path / "logs", livekit_url=livekit.url
    )


@pytest.fixture
def talker() -> FakeBot:
    bot = FakeBot(says=lambda _: until_told(bot))
    return bot


async def is_gone(livekit: LiveKitServer, room: str) -> None:
    async def nobody() -> bool:
        return AGENT_IDENTITY not in await livekit.people(room)

    await wait_until_async(nobody, what="the agent has left the room")


async def test_a_warm_agent_is_in_its_room_and_publishes_nothing(
    desk: Desk, settings: LauncherSettings, livekit: LiveKitServer, talker: FakeBot
) -> None:
    room = await livekit.create_room()
    async with living(settings, talker, OwnRoom(room, livekit.agent_token(room))):
        await is_warm(desk)
        assert await livekit.people(room) == {AGENT_IDENTITY: 0}


async def test_the_room_of_the_agent_is_the_session_and_the_bot_finds_it_joined(
    desk: Desk, settings: LauncherSettings, livekit: LiveKitServer
) -> None:
    async def look(_: Link) -> EndReason:
        assert bot.briefing
        assert bot.briefing.joined
        assert not bot.briefing.was_awaited
        return EndReason.GOODBYE if bot.briefing.joined.isconnected() else EndReason.AGENT_FAULT

    bot = FakeBot(says=look)
    room = await livekit.create_room()
    async with living(settings, bot, OwnRoom(room, livekit.agent_token(room))) as life:
        await is_warm(desk)
        desk.session("proposed")
        assert await asyncio.wait_for(life, 5) == 0
    assert desk.client.hget(keys.session(room), "end_reason") == "goodbye"
    assert not desk.client.exists(keys.session("proposed"))


async def test_an_agent_that_serves_who_waits_leaves_its_own_room(
    desk: Desk, settings: LauncherSettings, livekit: LiveKitServer, talker: FakeBot
) -> None:
    desk.session("s")
    room = await livekit.create_room()
    async with living(settings, talker, OwnRoom(room, livekit.agent_token(room))):
        await wait_until_async(talker.is_running.is_set, what="the bot runs")
        assert talker.briefing
        assert (talker.briefing.session_id, talker.briefing.joined) == ("s", None)
        assert talker.briefing.was_awaited
        await is_gone(livekit, room)


async def test_an_agent_whose_room_is_deleted_goes(
    desk: Desk, settings: LauncherSettings, livekit: LiveKitServer, talker: FakeBot
) -> None:
    room = await livekit.create_room()
    async with living(settings, talker, OwnRoom(room, livekit.agent_token(room))) as life:
        await is_warm(desk)
        await livekit.delete_room(room)
        assert await asyncio.wait_for(life, 5) == 0


async def test_an_agent_that_is_kicked_goes(
    desk: Desk, settings: LauncherSettings, livekit: LiveKitServer, talker: FakeBot
) -> None:
    room = await livekit.create_room()
    async with living(settings, talker, OwnRoom(room, livekit.agent_token(room))) as life:
        await is_warm(desk)
        async with livekit.api() as service:
            await service.room.remove_participant(api.RoomParticipantIdentity(room=room, identity=AGENT_IDENTITY))
        assert await asyncio.wait_for(life, 5) == 0


async def test_when_livekit_is_gone_a_warm_agent_goes_before_its_library_gives_up(
    desk: Desk, settings: LauncherSettings, tmp_path: Path, talker: FakeBot
) -> None:
    server = LiveKitServer(tmp_path)
    server.start()
    room = await server.create_room()
    there = settings.model_copy(update={"livekit_url": server.url})
    async with living(there, talker, OwnRoom(room, server.agent_token(room))) as life:
        await is_warm(desk)
        server.kill()
        assert await asyncio.wait_for(life, 8) == 0


async def test_without_its_room_an_agent_never_arrives(
    desk: Desk, settings: LauncherSettings, livekit: LiveKitServer, talker: FakeBot
) -> None:
    async with living(settings, talker, OwnRoom("session_0_none", livekit.agent_token("session_0_none"))) as life:
        assert await asyncio.wait_for(life, 10) == 21
    assert desk.client.zcard(keys.POOL_READY) == 0


async def test_an_agent_is_recycled_before_its_room_closes(
    desk: Desk,
    settings: LauncherSettings,
    livekit: LiveKitServer,
    talker: FakeBot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_room, "RECYCLE_SECONDS", 0.5)
    monkeypatch.setattr(own_room, "BELL_SECONDS", 0.3)
    room = await livekit.create_room()
    async with living(settings, talker, OwnRoom(room, livekit.agent_token(room))) as life:
        await is_warm(desk)
        until_ms = int(desk.client.hget(keys.agent(ME.id), "room_until_ms") or 0)
        assert await asyncio.wait_for(life, 5) == 0
        assert time.time() * 1000 > until_ms  # never while it may still be claimed
    await is_gone(livekit, room)


@pytest.mark.parametrize("nobody_came_seconds", [30.0, 120.0, 240.0])
async def test_a_room_is_there_for_as_long_as_a_caller_may_take_to_come(nobody_came_seconds: float) -> None:
    room = OwnRoom("s", "", nobody_came_seconds=nobody_came_seconds)
    room_for_ms = room.arrival(ME).arguments[5]
    assert isinstance(room_for_ms, int)
    assert 0 < room_for_ms / 1000 + nobody_came_seconds < EMPTY_TIMEOUT_SECONDS


async def test_a_session_whose_room_was_lost_in_the_moment_of_the_claim_is_joined_anew(
    livekit: LiveKitServer, settings: LauncherSettings
) -> None:
    room = await livekit.create_room()
    own = OwnRoom(room, livekit.agent_token(room))
    await own.join(settings.livekit_url)
    assert own.for_session(room)
    await livekit.delete_room(room)
    assert await asyncio.wait_for(own.over(), 5)
    assert own.for_session(room) is None
