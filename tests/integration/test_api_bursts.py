"""More callers at once than agents are warm, and more than fit."""

import asyncio
import itertools

import pytest

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import HOST, Answer, RunningApi, host_is_seen, running_api
from tests.valkey_server import Valkey

pytestmark = pytest.mark.alone
CAPACITY, WARM = 50, 3


async def burst(api: RunningApi, count: int) -> list[Answer]:
    """Let so many callers start at the same moment."""
    return await asyncio.gather(*(api.start(userName=f"user {number}") for number in range(count)))


async def serve_all(api: RunningApi) -> list[tuple[str, Assignment]]:
    """Let agents start as the host has room for them, and arrive, until nobody waits; who got what, in order."""
    served = []
    for step in itertools.count():
        reserved = await api.house.run(x.reserve_spawns(target=WARM, most=100, base=f"r{step}"))
        for slot in reserved.agents:
            agent = Agent(id=slot.id, nonce=f"nonce-{slot.id}", host_id=slot.host_id)
            work = await api.house.run(x.agent_arrives(agent))
            if isinstance(work, Assignment):
                assert await api.house.run(x.confirm_claim(agent, work))
                served.append((agent.id, work))
        if not reserved.agents:
            return served
    raise AssertionError("nobody counts so far")


async def test_of_a_burst_of_fifty_on_a_pool_of_three_everyone_gets_an_agent_in_order_and_none_twice(
    make_settings: MakeSettings, valkey: Valkey
) -> None:
    host_is_seen(valkey, capacity=CAPACITY, cores=2)
    async with running_api(make_settings()) as api:
        warm = [(await api.agent(f"warm{number}"))[0].id for number in range(WARM)]
        answers = await burst(api, CAPACITY)
        assert [answer.status for answer in answers] == [200] * CAPACITY
        line = valkey.client.zrange(keys.SESSION_WAITING, 0, -1)
        served = await serve_all(api)
    assert [work.session_id for _, work in served] == line, "somebody was overtaken"
    assert len(line) == CAPACITY - WARM
    agents = [valkey.client.hget(keys.session(answer.body["sessionId"]), "agent_id") for answer in answers]
    assert sorted(agents) == sorted([*warm, *(agent_id for agent_id, _ in served)])
    assert len(set(agents)) == CAPACITY
    assert valkey.client.scard(keys.host_agents(HOST)) == CAPACITY


async def test_of_a_burst_of_two_hundred_without_a_waiting_line_as_many_as_fit_get_in(
    make_settings: MakeSettings, valkey: Valkey
) -> None:
    """Their agents are not warm yet: who is within the capacity may wait for one also where MAX_WAITING is 0."""
    host_is_seen(valkey, capacity=CAPACITY, cores=2)
    async with running_api(make_settings(max_waiting=0)) as api:
        for number in range(WARM):
            await api.agent(f"warm{number}")
        answers = await burst(api, 200)
        assert len(await serve_all(api)) == CAPACITY - WARM
    refused = [answer for answer in answers if answer.status == 429]
    assert [answer.status for answer in answers].count(200) == CAPACITY
    assert len(refused) == 150
    assert {answer.body["error"] for answer in refused} == {"at_capacity"}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert len({answer.headers["Retry-After"] for answer in refused}) > 1, "they would all come back together"
    assert all("waiting line is full" in answer.body["detail"] for answer in refused)


async def test_of_a_burst_on_a_frozen_redis_everyone_is_told_soon(make_settings: MakeSettings, valkey: Valkey) -> None:
    async with running_api(make_settings()) as api:
        valkey.freeze()
        try:
            async with asyncio.timeout(4):  # 3 s, and the machine's own slowness
                answers = await burst(api, 60)
        finally:
            valkey.thaw()
    assert [answer.status for answer in answers] == [503] * 60
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
