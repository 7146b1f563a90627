"""What Redis' own outages do: frozen, killed, restarted without its scripts, commands sent twice."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import redis
import redis.asyncio

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment, EndReason, Outcome, Word
from backend.common.limits import Limits
from tests.integration.desk import ROOMY, Desk
from tests.valkey_server import Valkey
from tests.waiting import wait_until, wait_until_async


def test_a_redis_that_lost_the_scripts_gets_them_again(desk: Desk) -> None:
    desk.agent("a")
    desk.client.script_flush()
    assert desk.session().agent_id == "a"
    assert desk.client.script_exists(desk.exchange.digests["session_arrives"]) == [True]


async def test_the_asynchronous_way_gets_the_scripts_again_too(desk: Desk) -> None:
    desk.client.script_flush()
    async with redis.asyncio.Redis.from_url(desk.valkey.url, decode_responses=True) as client:
        assert (await desk.exchange.run(client, x.session_arrives(ROOMY))).outcome is Outcome.NEW
        assert (await desk.exchange.run(client, x.session_arrives(replace(ROOMY, proposed_id="s2")))).state == "waiting"


def test_all_keys_carry_the_hash_tag_of_a_cluster(valkey: Valkey) -> None:
    exchange = x.Exchange(prefix="{greenroom}:")
    agent = Agent(id="a", nonce="n", host_id="h")
    work = Assignment(session_id="s", generation=1)
    calls: list[x.Call[Any]] = [
        x.host_reports("h", {"capacity": 2, "cores": 2}, is_open=True),
        x.reserve_spawns(target=1, most=1, base="h"),
        x.let_go(target=0, most=1),
        x.agent_arrives(agent),
        x.session_arrives(replace(ROOMY, start_key="u:k", prompt={"opening_line": "Hello!"})),
        x.confirm_claim(agent, work),
        x.begin_session(agent, work),
        x.heartbeat(agent, work),
        x.livekit_event("e", session_id="s", event="participant_joined", room_sid="RM_1", participant_sid="PA_1"),
        x.record_turn(agent, work, "Hello!", most=1, most_bytes=10),
        x.agent_returns(agent, work, remembered={}),
        x.agent_exited(agent, exit_code=-9),
        x.end_session("s", EndReason.GOODBYE),
        x.session_settled("s"),
        x.expire_leases(),
        x.read_fleet(),
    ]
    assert {call.operation for call in calls} == set(exchange.scripts)
    for call in calls:
        exchange.run_sync(valkey.client, call)
    assert valkey.client.dbsize() > 5
    assert {key.split(":")[0] for key in valkey.client.scan_iter()} == {"{greenroom}"}


def test_a_killed_redis_comes_back_with_every_session_it_answered(desk: Desk) -> None:
    agent, work = desk.live()
    desk.session("waits")
    desk.valkey.kill()
    desk.valkey.start()
    assert desk.do(x.heartbeat(agent, work)).word is Word.KEEP
    assert desk.client.zrange(keys.SESSION_WAITING, 0, -1) == ["waits"]


@pytest.mark.parametrize("start_key", ["", "u:one-for-this-request"])
async def test_a_start_that_the_client_repeats_makes_one_session_if_it_has_a_key(desk: Desk, start_key: str) -> None:
    """redis-py sends a command again when no answer came; a frozen Redis then runs both.

    Without a key both are starts of their own: this is why the API always draws one.
    """
    for number in range(4):
        desk.agent(f"a{number}", room=f"own{number}", room_for_ms=60_000)
    desk.session("warm_up")  # loads the script: what is repeated is one command
    # Made from a pool or an address, a client repeats nothing; made like this, it does by default.
    async with redis.asyncio.Redis(port=desk.valkey.port, socket_timeout=0.4, decode_responses=True) as client:
        await client.ping()
        desk.valkey.freeze()
        start = replace(ROOMY, proposed_id="one", start_key=start_key)
        asked = asyncio.create_task(desk.exchange.run(client, x.session_arrives(start)))
        await asyncio.sleep(0.7)  # the outage: longer than the client waits, shorter than it gives up
        desk.valkey.thaw()
        await asyncio.gather(asked, return_exceptions=True)
    made = desk.client.zcard(keys.SESSION_OPEN) - 1
    assert made == 1 if start_key else made > 1


@pytest.mark.parametrize("has_limit", [True, False])
async def test_a_start_given_up_while_redis_was_frozen_happens_only_without_not_after(
    desk: Desk, has_limit: bool
) -> None:
    """The command lies in the socket's buffer, also after the client closed: Redis runs it when it thaws."""
    desk.session("warm_up")
    limit = desk.valkey.now_ms() + 300 if has_limit else None
    clients_before = desk.client.info("clients")["connected_clients"]
    client = redis.asyncio.Redis.from_url(desk.valkey.url, socket_timeout=0.3, retry=None, decode_responses=True)
    await client.ping()
    desk.valkey.freeze()
    with pytest.raises(redis.TimeoutError):
        await desk.exchange.run(client, x.session_arrives(replace(ROOMY, proposed_id="given_up", not_after_ms=limit)))
    await client.aclose()
    await asyncio.sleep(0.1)  # the outage goes on past the limit
    desk.valkey.thaw()
    calls = "cmdstat_evalsha"
    await wait_until_async(lambda: desk.client.info("commandstats").get(calls, {}).get("calls", 0) > 0)
    wait_until(lambda: desk.client.info("clients")["connected_clients"] == clients_before)  # it has all been run
    assert bool(desk.client.exists("session:given_up")) is not has_limit


async def test_a_frozen_redis_costs_no_live_call_its_agent(valkey: Valkey) -> None:
    """Leases lapse while nobody could renew them; agents and sweeps go on as the product's do, only faster."""
    desk = Desk(valkey, Limits(lease=1_500, sweep_gap=750))
    calls = [desk.live(f"s{number}", f"a{number}") for number in range(10)]
    killed: list[Agent] = []
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        desk.valkey.url, socket_timeout=0.2, max_connections=10, timeout=2, decode_responses=True
    )
    async with redis.asyncio.Redis.from_pool(pool) as client:

        async def beat(agent: Agent, work: Assignment) -> None:
            await desk.exchange.run(client, x.heartbeat(agent, work))

        async def sweep() -> None:
            killed.extend((await desk.exchange.run(client, x.expire_leases())).kill)

        tasks = [asyncio.create_task(_every(0.25, sweep))]
        tasks += [asyncio.create_task(_every(0.5, beat, agent, work)) for agent, work in calls]
        await asyncio.to_thread(desk.valkey.freeze, 2.5)
        await asyncio.sleep(2.0)  # more than a lease later: who is lost by now was lost by the freeze
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert killed == []
    assert {desk.field(f"session:s{number}", "generation") for number in range(10)} == {"1"}


async def _every(seconds: float, act: Callable[..., Awaitable[None]], *arguments: object) -> None:
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            await act(*arguments)  # as in an agent: the call goes on, the next beat tries again
        await asyncio.sleep(seconds)
