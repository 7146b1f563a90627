"""What the periodic tasks do to sessions and agents: refill, sweep, settle."""

import asyncio
import base64
import json
from collections import Counter
from typing import Any

import pytest
import redis

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Arrival, Assignment, EndReason, Start
from backend.common.settings import OrchestratorSettings
from backend.orchestrator import lifecycle, supply
from backend.orchestrator.broker import make_app
from backend.orchestrator.house import House, open_house
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import HOST, host_is_seen
from tests.valkey_server import Valkey, free_port
from tests.waiting import wait_until_async

START = Start(proposed_id="", user_id="Ann", longest_ms=600_000, fleet_ceiling=1_000, user_ceiling=1_000)


def session_id(number: int) -> str:
    return f"session_1762018728198_{number:016x}"


async def arrives(house: House, number: int = 0) -> Arrival:
    """Let a session arrive, with a room as the API makes one."""
    name = session_id(number)
    await house.rooms.create(name)
    start = Start(
        **(vars(START) | {"proposed_id": name, "record": {"user_name": "Ann", "caller_identity": "caller_1"}})
    )
    return await house.run(x.session_arrives(start))


async def agent(house: House, name: str = "a", host_id: str = HOST) -> tuple[Agent, Assignment | str]:
    arrived = Agent(id=name, nonce=f"nonce-{name}", host_id=host_id, pid=1)
    return arrived, await house.run(x.agent_arrives(arrived))


async def in_a_call(house: House) -> Agent:
    """A session whose caller hears an agent; returns the agent."""
    await arrives(house)
    arrived, assignment = await agent(house)
    assert isinstance(assignment, Assignment)
    assert await house.run(x.confirm_claim(arrived, assignment))
    assert await house.run(x.begin_session(arrived, assignment))
    return arrived


def commands(valkey: Valkey, host_id: str) -> list[tuple[str, list[Any], str | None]]:
    """What lies in a host's queue: task, arguments, expiry."""
    found = []
    with redis.Redis.from_url(valkey.broker_url) as broker:
        lying: Any = broker.lrange(f"celery:host.{host_id}", 0, -1)
    for message in map(json.loads, lying):
        args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
        assert kwargs == {}
        found.append((message["headers"]["task"], args, message["headers"]["expires"]))
    return found


def slots(valkey: Valkey) -> Counter[str]:
    """How many agents each host starts or has."""
    return Counter({key.split(":")[1]: valkey.client.scard(key) for key in valkey.client.scan_iter("host:*:agents")})


def lapse(valkey: Valkey, *members: str) -> None:
    """Let deadlines pass, with sweeps that came all the time."""
    valkey.client.zadd(keys.DEADLINES, dict.fromkeys(members, 1))
    valkey.client.hset(keys.SWEEP, mapping={"swept_at_ms": valkey.now_ms(), "quiet_until_ms": 0})


# -- refill


async def test_only_an_agent_whom_nobody_awaits_gets_a_room_of_its_own(house: House, valkey: Valkey) -> None:
    await arrives(house)
    valkey.client.sadd(keys.POOL_STARTING, "a")
    assert await supply.make_warm_room(house) == ("", ""), "the session in the line has a room"
    valkey.client.sadd(keys.POOL_STARTING, "b")
    room, token = await supply.make_warm_room(house)
    assert token, "one session cannot take both"
    assert room in {made.name for made in await house.rooms.list_ours()}


async def test_refill_spreads_the_missing_agents_over_the_hosts(house: House, valkey: Valkey) -> None:
    host_is_seen(valkey, "h1", cores=4)
    host_is_seen(valkey, "h2", cores=4)
    assert await supply.refill(house) == 6
    assert slots(valkey) == {"h1": 3, "h2": 3}
    assert await house.commands.queue_lengths(["h1", "h2"]) == {"control": 0, "host.h1": 3, "host.h2": 3}
    assert await supply.refill(house) == 0


async def test_a_refill_goes_on_while_agents_start_and_is_the_only_one(
    house: House, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0

    async def count(_: float) -> None:
        nonlocal passes
        passes += 1

    monkeypatch.setattr(asyncio, "sleep", count)
    host_is_seen(valkey, cores=1)
    await supply.refill_while_missing(house)
    assert passes == supply.PASSES
    await supply.refill_while_missing(house)
    assert passes == supply.PASSES, "the first one's turn is not over"


async def test_a_full_house_holds_up_no_worker(house: House, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "sleep", None)
    valkey.client.sadd(keys.host_agents(HOST), "a", "b")  # both in calls
    host_is_seen(valkey, cores=4, capacity=2)
    await arrives(house, 1)
    await supply.refill_while_missing(house)
    assert not valkey.client.scard(keys.POOL_STARTING)


async def test_a_spawn_command_carries_an_agents_id_and_an_expiry_and_nothing_else(
    house: House, valkey: Valkey
) -> None:
    host_is_seen(valkey, cores=4)
    await supply.refill(house)
    sent = commands(valkey, HOST)
    assert {task for task, _, _ in sent} == {"greenroom.spawn"}
    assert {args[0] for _, args, _ in sent} == valkey.client.smembers(keys.host_agents(HOST))
    assert all(len(args) == 1 and expires for _, args, expires in sent)


async def test_twenty_refills_at_once_start_no_agent_too_many(house: House, valkey: Valkey) -> None:
    host_is_seen(valkey, "h1", cores=4)
    host_is_seen(valkey, "h2", cores=4)
    await asyncio.gather(*(supply.refill(house) for _ in range(20)))
    assert sum(slots(valkey).values()) == 6
    assert sum((await house.commands.queue_lengths(["h1", "h2"])).values()) == 6


async def test_refill_counts_who_waits_and_who_is_starting(house: House, valkey: Valkey) -> None:
    host_is_seen(valkey, cores=8)
    for number in range(2):
        await arrives(house, number)
    assert await supply.refill(house) == 2 + 3
    assert await supply.refill(house) == 0


async def test_a_host_starts_one_agent_a_core_at_a_time_and_never_more_than_it_holds(
    house: House, valkey: Valkey
) -> None:
    host_is_seen(valkey, capacity=5, cores=2)
    for number in range(10):
        await arrives(house, number)
    started = []
    for _ in range(4):
        started.append(await supply.refill(house))
        for name in sorted(valkey.client.smembers(keys.POOL_STARTING)):
            await agent(house, name)
    assert started == [2, 2, 1, 0]
    assert valkey.client.zcard(keys.SESSION_WAITING) == 5


async def test_a_burst_is_served_in_order_as_agents_come(house: House, valkey: Valkey) -> None:
    host_is_seen(valkey, capacity=12, cores=4)
    for number in range(9):
        assert (await arrives(house, number)).state == "waiting"
    served = []
    while valkey.client.zcard(keys.SESSION_WAITING):
        await supply.refill(house)
        for name in sorted(valkey.client.smembers(keys.POOL_STARTING)):
            _, assignment = await agent(house, name)
            served += [assignment.session_id] if isinstance(assignment, Assignment) else []
    assert served == [session_id(number) for number in range(9)]


async def test_without_a_host_nothing_is_started(house: House, valkey: Valkey) -> None:
    await arrives(house)
    assert await supply.refill(house) == 0
    host_is_seen(valkey, "gone")
    valkey.client.zadd(keys.HOSTS, {"gone": valkey.now_ms() - 11_000})
    assert await supply.refill(house) == 0


async def test_a_burst_of_starts_asks_for_a_refill_once_and_the_next_start_again(house: House) -> None:
    async def asked() -> int:
        return (await house.commands.queue_lengths([]))["control"]

    async def asked_again() -> bool:
        return await asked() == 2

    for _ in range(50):
        house.commands.refill_soon()
    await wait_until_async(asked, what="a refill is asked for")
    house.commands.refill_soon()
    await wait_until_async(asked_again, what="another refill is asked for")
    house.commands.refill_soon()
    await house.commands.close()  # with one still to come: it is not sent, and nothing complains
    assert await asked() == 2


async def test_a_refill_that_is_to_come_later_comes_later(house: House) -> None:
    async def asked() -> int:
        return (await house.commands.queue_lengths([]))["control"]

    house.commands.refill_soon(after_seconds=0.5)
    assert await asked() == 0
    await wait_until_async(asked, what="a refill is asked for")


# -- sweep


async def test_an_agent_that_fell_silent_is_killed_on_its_host_and_its_session_waits_again(
    house: House, valkey: Valkey
) -> None:
    lost = await in_a_call(house)
    lapse(valkey, "agent:a")
    assert await lifecycle.sweep(house) == 1
    assert [(task, args) for task, args, _ in commands(valkey, HOST)] == [("greenroom.kill", [lost.id, lost.nonce])]
    record = valkey.client.hgetall(keys.session(session_id(0)))
    assert (record["state"], record["generation"]) == ("waiting", "2")


async def test_a_session_that_waited_too_long_ends_unbilled_as_our_fault(house: House, valkey: Valkey) -> None:
    await arrives(house)
    lapse(valkey, f"waiting:{session_id(0)}")
    await lifecycle.sweep(house)
    record = valkey.client.hgetall(keys.session(session_id(0)))
    assert (record["state"], record["end_reason"], record["ended_by"]) == ("ended", "start_timeout", "platform")
    assert record["conversationDuration"] == "0"


async def test_one_sweep_handles_more_than_one_step_of_deadlines(house: House, valkey: Valkey) -> None:
    for number in range(60):
        await arrives(house, number)
    lapse(valkey, *(f"waiting:{session_id(number)}" for number in range(60)))
    assert await lifecycle.sweep(house) == 60
    assert valkey.client.zcard(keys.SESSION_OPEN) == 0


# -- settle


async def room_names(house: House) -> set[str]:
    return {room.name for room in await house.rooms.list_ours()}


async def test_settling_waits_for_the_agents_goodbye_and_then_deletes_the_room(house: House, valkey: Valkey) -> None:
    leaving = await in_a_call(house)
    await house.run(x.end_session(session_id(0), EndReason.CLIENT_END))
    assert await lifecycle.settle(house) == 0
    assert await room_names(house) == {session_id(0)}
    await house.run(x.agent_exited(leaving, exit_code=0))
    assert await lifecycle.settle(house) == 1
    assert await room_names(house) == set()
    assert valkey.client.zcard(keys.SETTLE_DUE) == 0
    assert valkey.client.hexists(keys.session(session_id(0)), "settled_at_ms")


async def test_settling_waits_ten_seconds_at_most(house: House, valkey: Valkey) -> None:
    await in_a_call(house)
    await house.run(x.end_session(session_id(0), EndReason.CLIENT_END))
    valkey.client.hincrby(keys.session(session_id(0)), "ended_at_ms", -10_001)
    assert await lifecycle.settle(house) == 1
    assert await room_names(house) == set()


async def test_a_session_without_an_agent_is_settled_at_once(house: House) -> None:
    await arrives(house)
    await house.run(x.end_session(session_id(0), EndReason.CLIENT_END))
    assert await lifecycle.settle(house) == 1
    assert await room_names(house) == set()


async def test_a_session_is_settled_once_whoever_tries(house: House) -> None:
    await arrives(house)
    await house.run(x.end_session(session_id(0), EndReason.CLIENT_END))
    assert sorted(await asyncio.gather(*(lifecycle.settle(house) for _ in range(10)))) == [0] * 9 + [1]
    assert await lifecycle.settle(house) == 0


async def test_settling_goes_on_when_livekit_is_back(house: House, make_settings: MakeSettings, valkey: Valkey) -> None:
    for number in range(3):
        await arrives(house, number)
        await house.run(x.end_session(session_id(number), EndReason.CLIENT_END))
    settings: OrchestratorSettings = make_settings(livekit_url=f"ws://127.0.0.1:{free_port()}")
    cut_off = open_house(settings, make_app(settings))
    assert await lifecycle.settle(cut_off) == 0
    await cut_off.close()
    assert valkey.client.zcard(keys.SETTLE_DUE) == 3
    assert await lifecycle.settle(house) == 3


async def test_a_session_that_redis_forgot_leaves_the_outbox_and_no_trace(house: House, valkey: Valkey) -> None:
    await arrives(house)
    await house.run(x.end_session(session_id(0), EndReason.CLIENT_END))
    valkey.client.delete(keys.session(session_id(0)))
    await lifecycle.settle(house)
    assert valkey.client.zcard(keys.SETTLE_DUE) == 0
    assert await house.store.session(session_id(0)) == {}
    assert await house.store.sessions(state=None, limit=10, cursor=None) == ([], None)


# -- from the first agent to the next


@pytest.mark.parametrize("has_next", [True, False])
async def test_an_agent_that_dies_in_a_call_is_followed_by_the_next(
    house: House, valkey: Valkey, has_next: bool
) -> None:
    lost = await in_a_call(house)
    if has_next:
        await agent(house, "b")
    await house.run(x.agent_exited(lost, exit_code=-9))
    if not has_next:
        host_is_seen(valkey, cores=4)
        assert await supply.refill(house) == 4  # the three that are wanted warm, and one for who waits
        _, assignment = await agent(house, "b")
        assert assignment == Assignment(session_id=session_id(0), generation=2)
    record = valkey.client.hgetall(keys.session(session_id(0)))
    assert (record["agent_id"], record["generation"], record["state"]) == ("b", "2", "assigned")
    assert int(record["started_at_ms"]) > 0
