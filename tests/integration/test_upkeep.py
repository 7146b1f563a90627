"""What is put right now and then: rooms and sessions that lost each other, what is too old, the last one out."""

import pytest
import redis

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, EndReason, Start
from backend.orchestrator import upkeep
from backend.orchestrator.broker import make_app
from backend.orchestrator.errors import UnavailableError
from backend.orchestrator.house import House, open_house
from backend.orchestrator.rooms import Rooms
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import host_is_seen
from tests.livekit_server import LiveKitServer
from tests.valkey_server import Valkey, free_port

OPEN, LOST, ORPHAN = (f"session_1762018728198_{number:016x}" for number in range(3))
DAY_MS = 24 * 3_600_000


@pytest.fixture
def _everything_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rooms and sessions of this moment count as old enough to be put right; LiveKit's clock has whole seconds."""
    monkeypatch.setattr(upkeep, "YOUNG_SECONDS", -2)


@pytest.fixture
def _sweeps_have_come(valkey: Valkey) -> None:
    """Redis has not been away: its sweeps came all the time."""
    valkey.client.hset(keys.SWEEP, mapping={"swept_at_ms": valkey.now_ms(), "quiet_until_ms": 1})


async def arrives(house: House, name: str) -> None:
    start = Start(proposed_id=name, user_id="Ann", longest_ms=600_000, fleet_ceiling=100, user_ceiling=100)
    await house.run(x.session_arrives(start))


async def room_names(house: House) -> set[str]:
    return {room.name for room in await house.rooms.list_ours()}


def state(valkey: Valkey, name: str) -> str | None:
    found: str | None = valkey.client.hget(keys.session(name), "state")
    return found


# -- reconcile


@pytest.mark.usefixtures("_everything_is_old", "_sweeps_have_come")
async def test_a_room_without_a_session_goes_and_a_session_without_a_room_ends(house: House, valkey: Valkey) -> None:
    for name in (OPEN, LOST):
        await arrives(house, name)
    for name in (OPEN, ORPHAN):
        await house.rooms.create(name)
    assert await upkeep.reconcile(house) == 2
    assert await room_names(house) == {OPEN}
    assert [state(valkey, name) for name in (OPEN, LOST)] == ["waiting", "ended"]
    assert valkey.client.hmget(keys.session(LOST), "end_reason", "ended_by") == ["room_lost", "platform"]
    assert await upkeep.reconcile(house) == 0


@pytest.mark.usefixtures("_sweeps_have_come")
async def test_what_is_younger_than_a_minute_is_left_alone(house: House, valkey: Valkey) -> None:
    await arrives(house, LOST)
    await house.rooms.create(ORPHAN)
    assert await upkeep.reconcile(house) == 0
    assert await room_names(house) == {ORPHAN}
    assert state(valkey, LOST) == "waiting"


@pytest.mark.usefixtures("_everything_is_old", "_sweeps_have_come")
async def test_deployments_that_share_a_livekit_server_leave_each_others_rooms_alone(
    make_settings: MakeSettings, house: House, valkey: Valkey
) -> None:
    """A laptop with the LiveKit project of production must not end its calls, whatever nobody set."""
    laptop = Rooms(make_settings(deployment_id=None))
    production = Rooms(make_settings(deployment_id=None, redis_url="redis://elsewhere:6379/0"))
    try:
        await production.create(OPEN)
        assert OPEN not in {room.name for room in await laptop.list_ours()}
        assert OPEN in {room.name for room in await production.list_ours()}
        await arrives(house, OPEN)
        await upkeep.reconcile(house)
        assert state(valkey, OPEN) == "waiting", "its room is there, whoever's mark it bears"
    finally:
        await production.delete(OPEN)
        for rooms in (laptop, production):
            await rooms.close()


@pytest.mark.usefixtures("_everything_is_old", "_sweeps_have_come")
async def test_rooms_of_others_are_left_alone(house: House, livekit: LiveKitServer) -> None:
    foreign = await livekit.create_room()
    await upkeep.reconcile(house)
    assert await livekit.identities(foreign) == set()  # raises when there is no such room
    await livekit.delete_room(foreign)


@pytest.mark.usefixtures("_everything_is_old", "_sweeps_have_come")
async def test_a_room_in_which_an_agent_says_goodbye_is_left_to_settle(house: House) -> None:
    await house.rooms.create(OPEN)
    await arrives(house, OPEN)
    await house.run(x.end_session(OPEN, EndReason.CLIENT_END))
    assert await upkeep.reconcile(house) == 0
    assert await room_names(house) == {OPEN}


@pytest.mark.usefixtures("_everything_is_old")
async def test_after_redis_forgot_everything_rooms_wait_for_their_agents_to_return(
    house: House, valkey: Valkey
) -> None:
    await house.rooms.create(ORPHAN)
    assert await upkeep.reconcile(house) == 0  # nobody swept yet
    await house.run(x.expire_leases())
    assert await upkeep.reconcile(house) == 0  # the sweep found a gap, and rests
    quiet_until_ms = valkey.now_ms() - house.limits.lease + 1_000
    valkey.client.hset(keys.SWEEP, "quiet_until_ms", quiet_until_ms)
    assert await upkeep.reconcile(house) == 0  # one lease more, for those who return
    assert await room_names(house) == {ORPHAN}
    valkey.client.hset(keys.SWEEP, "quiet_until_ms", quiet_until_ms - 1_001)
    assert await upkeep.reconcile(house) == 1
    assert await room_names(house) == set()


@pytest.mark.usefixtures("_everything_is_old", "_sweeps_have_come")
async def test_no_session_ends_because_livekit_does_not_answer(make_settings: MakeSettings, valkey: Valkey) -> None:
    settings = make_settings(livekit_url=f"ws://127.0.0.1:{free_port()}")
    cut_off = open_house(settings, make_app(settings))
    await arrives(cut_off, LOST)
    with pytest.raises(UnavailableError):
        await upkeep.reconcile(cut_off)
    await cut_off.close()
    assert state(valkey, LOST) == "waiting"


# -- prune


async def test_what_is_older_than_a_week_is_forgotten(house: House, valkey: Valkey) -> None:
    now_ms = valkey.now_ms()
    for index in (keys.SESSION_ALL, keys.SESSION_ENDED):
        valkey.client.zadd(index, {"old": now_ms - 7 * DAY_MS - 1, "young": now_ms - 7 * DAY_MS + 60_000})
    assert await upkeep.prune(house) == []
    assert valkey.client.zrange(keys.SESSION_ALL, 0, -1) == valkey.client.zrange(keys.SESSION_ENDED, 0, -1) == ["young"]


async def test_a_host_unheard_for_an_hour_is_given_up_with_its_queue(house: House, valkey: Valkey) -> None:
    host_is_seen(valkey, "here")
    host_is_seen(valkey, "gone")
    for host_id in ("here", "gone"):
        await house.commands.spawn(host_id, "a")
    valkey.client.zadd(keys.HOSTS, {"gone": valkey.now_ms() - 3_600_001})
    assert await upkeep.prune(house) == ["gone"]
    assert valkey.client.zrange(keys.HOSTS, 0, -1) == ["here"]
    assert await house.commands.queue_lengths(["here", "gone"]) == {"control": 0, "host.here": 1, "host.gone": 0}
    with redis.Redis.from_url(valkey.broker_url, decode_responses=True) as broker:
        assert not [key for key in broker.scan_iter() if key.endswith("host.gone")]
    assert await upkeep.prune(house) == []


# -- close down


async def test_the_last_one_out_ends_who_waits(house: House, valkey: Valkey) -> None:
    await arrives(house, OPEN)
    await house.run(x.agent_arrives(Agent(id="a", nonce="n", host_id="h")))
    await arrives(house, LOST)
    await arrives(house, ORPHAN)
    host_is_seen(valkey)
    assert await upkeep.close_down(house) == 0
    valkey.client.delete(keys.HOSTS)
    assert await upkeep.close_down(house) == 2
    assert [state(valkey, name) for name in (OPEN, LOST, ORPHAN)] == ["assigned", "ended", "ended"]
    assert valkey.client.hmget(keys.session(LOST), "end_reason", "ended_by") == ["shutdown", "platform"]
