"""Each operation raced by 50 clients at once.

Redis runs one script at a time, so nothing can happen *between* the lines of an operation. What can go wrong
is an operation that decides by something another one changes: two starts that see the same warm agent, two
refills that see the same gap, an end that overtakes an exit report. So 50 connections, each its own task, are
held at one line and let go together; whatever order Redis runs them in, exactly one may win where one may, and
whoever may ask again gets the answer that was given first.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest_asyncio
import redis.asyncio

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Arrival, Assignment, EndReason, Outcome, Word
from tests.integration.desk import ROOMY, Desk
from tests.integration.test_exchange_forgets import remembered

CLIENTS = 50


class Crowd:
    """Fifty connected clients of one exchange."""

    def __init__(self, desk: Desk, clients: Sequence[redis.asyncio.Redis]) -> None:
        self.desk = desk
        self.clients = clients

    async def race(self, calls: Sequence[x.Call[x.Reply]]) -> list[x.Reply]:
        """Make one call per client, all let go at the same moment; the replies in the order of the calls."""
        line = asyncio.Barrier(CLIENTS)

        async def run(client: redis.asyncio.Redis, call: x.Call[x.Reply]) -> x.Reply:
            await line.wait()
            return await self.desk.exchange.run(client, call)

        return await asyncio.gather(*(run(*pair) for pair in zip(self.clients, calls, strict=True)))

    async def race_one(self, call: x.Call[x.Reply]) -> list[x.Reply]:
        """Let all clients make the same call."""
        return await self.race([call] * CLIENTS)


@pytest_asyncio.fixture
async def crowd(desk: Desk) -> AsyncIterator[Crowd]:
    async with AsyncExitStack() as stack:
        clients = [
            redis.asyncio.Redis.from_url(desk.valkey.url, single_connection_client=True, decode_responses=True)
            for _ in range(CLIENTS)
        ]
        await asyncio.gather(*map(stack.enter_async_context, clients))  # connects
        yield Crowd(desk, clients)


def agents(count: int) -> list[Agent]:
    return [Agent(id=f"a{number}", nonce=f"n{number}", host_id="h") for number in range(count)]


async def test_of_fifty_sessions_as_many_get_an_agent_as_there_are_and_nobody_the_same(crowd: Crowd) -> None:
    for agent in agents(20):
        crowd.desk.do(x.agent_arrives(agent))
    arrivals: list[Arrival] = await crowd.race(
        [x.session_arrives(replace(ROOMY, proposed_id=f"s{number}")) for number in range(CLIENTS)]
    )
    given = Counter(arrival.agent_id for arrival in arrivals if arrival.state == "assigned")
    assert sorted(given) == sorted(agent.id for agent in agents(20))
    assert set(given.values()) == {1}
    assert crowd.desk.client.zcard(keys.SESSION_WAITING) == 30


async def test_one_start_key_makes_one_session_for_fifty_starts(crowd: Crowd) -> None:
    for agent in agents(5):
        crowd.desk.do(x.agent_arrives(agent))
    start = replace(ROOMY, start_key="u:k", body_hash="b")
    arrivals = await crowd.race(
        [x.session_arrives(replace(start, proposed_id=f"s{number}")) for number in range(CLIENTS)]
    )
    assert Counter(arrival.outcome for arrival in arrivals) == {Outcome.NEW: 1, Outcome.AGAIN: CLIENTS - 1}
    assert len({(arrival.session_id, arrival.agent_id) for arrival in arrivals}) == 1
    assert crowd.desk.client.zcard(keys.POOL_READY) == 4


async def test_a_ceiling_lets_exactly_its_number_in(crowd: Crowd) -> None:
    arrivals = await crowd.race(
        [x.session_arrives(replace(ROOMY, proposed_id=f"s{number}", fleet_ceiling=7)) for number in range(CLIENTS)]
    )
    assert Counter(arrival.outcome for arrival in arrivals) == {Outcome.NEW: 7, Outcome.REFUSED: CLIENTS - 7}


async def test_of_fifty_agents_each_waiting_session_gets_one_in_order(crowd: Crowd) -> None:
    for number in range(20):
        crowd.desk.session(f"s{number}")
    offered = await crowd.race([x.agent_arrives(agent) for agent in agents(CLIENTS)])
    served = [reply for reply in offered if isinstance(reply, Assignment)]
    assert sorted(reply.session_id for reply in served) == sorted(f"s{number}" for number in range(20))
    assert crowd.desk.client.zcard(keys.POOL_READY) == CLIENTS - 20


async def test_sessions_and_agents_that_come_together_are_all_matched(crowd: Crowd) -> None:
    """Twenty-five of each at once: nobody may wait beside somebody who is free."""
    calls: list[x.Call[Any]] = []
    for number, agent in enumerate(agents(CLIENTS // 2)):
        calls += [x.agent_arrives(agent), x.session_arrives(replace(ROOMY, proposed_id=f"s{number}"))]
    await crowd.race(calls)
    holders = [crowd.desk.field(f"session:s{number}", "agent_id") for number in range(CLIENTS // 2)]
    assert sorted(holders) == sorted(agent.id for agent in agents(CLIENTS // 2))
    assert crowd.desk.client.zcard(keys.POOL_READY) == crowd.desk.client.zcard(keys.SESSION_WAITING) == 0


async def test_of_fifty_processes_with_one_id_one_arrives(crowd: Crowd) -> None:
    twins = [Agent(id="a", nonce=f"n{number}", host_id="h") for number in range(CLIENTS)]
    assert Counter(await crowd.race([x.agent_arrives(twin) for twin in twins])) == {"warm": 1, "stale": CLIENTS - 1}


async def test_a_claim_is_confirmed_as_often_as_its_agent_asks_and_by_nobody_else(crowd: Crowd) -> None:
    agent, work = crowd.desk.assigned()
    stranger = Agent(id="a", nonce="other", host_id="h")
    later = replace(work, generation=2)
    calls = [x.confirm_claim(agent, work), x.confirm_claim(stranger, work), x.confirm_claim(agent, later)] * CLIENTS
    replies = await crowd.race(calls[:CLIENTS])
    assert replies == [number % 3 == 0 for number in range(CLIENTS)]


async def test_a_call_begins_once_and_all_hear_when(crowd: Crowd) -> None:
    agent, work = crowd.desk.assigned()
    crowd.desk.do(x.confirm_claim(agent, work))
    begun = await crowd.race_one(x.begin_session(agent, work))
    assert len({reply[0] for reply in begun if reply}) == 1
    assert None not in begun


async def test_an_end_is_first_once_and_its_figures_are_the_same_for_all(crowd: Crowd) -> None:
    crowd.desk.live()
    reasons = list(EndReason)
    ends = await crowd.race([x.end_session("s", reasons[n % len(reasons)]) for n in range(CLIENTS)])
    assert Counter(end.is_first for end in ends if end) == {True: 1, False: CLIENTS - 1}
    assert len({(end.ended_at_ms, end.billed_ms) for end in ends if end}) == 1
    winner = next(number for number, end in enumerate(ends) if end and end.is_first)
    assert crowd.desk.field("session:s", "end_reason") == reasons[winner % len(reasons)]


async def test_an_end_that_meets_exit_reports_ends_the_session_once_and_never_replaces_it_after(crowd: Crowd) -> None:
    """Whoever is first: an ended session takes no successor, and a session that lost its agent can be ended."""
    agent, _ = crowd.desk.live()
    crowd.desk.agent("b")
    half = CLIENTS // 2
    calls: list[x.Call[Any]] = [x.end_session("s", EndReason.CLIENT_END), x.agent_exited(agent, exit_code=-9)] * half
    replies = await crowd.race(calls)
    assert sum(getattr(reply, "is_first", False) for reply in replies) == 2, "one end, one exit"
    assert crowd.desk.field("session:s", "state") == "ended"
    successor = crowd.desk.field("agent:b", "state")
    assert successor == ("warm" if crowd.desk.field("session:s", "generation") == "1" else "stopping")


async def test_an_exit_is_acted_on_once(crowd: Crowd) -> None:
    agent, _ = crowd.desk.live()
    reports = await crowd.race_one(x.agent_exited(agent, exit_code=-9))
    assert Counter(report.is_first for report in reports) == {True: 1, False: CLIENTS - 1}
    assert crowd.desk.field("session:s", "generation") == "2"


async def test_fifty_refills_together_start_what_one_would(crowd: Crowd) -> None:
    for number in range(5):
        crowd.desk.host(f"h{number}", capacity=3, cores=2)
    calls = [x.reserve_spawns(target=9, most=3, base=f"r{number}") for number in range(CLIENTS)]
    ids = [agent.id for reserved in await crowd.race(calls) for agent in reserved.agents]
    assert len(ids) == len(set(ids)) == 9
    assert sorted(crowd.desk.client.scard(keys.host_agents(f"h{host}")) for host in range(5)) == [1, 2, 2, 2, 2]


async def test_fifty_who_let_go_together_leave_as_many_warm_as_are_wanted(crowd: Crowd) -> None:
    for agent in agents(10):
        crowd.desk.do(x.agent_arrives(agent))
        crowd.desk.client.zadd(keys.host_warm("h"), {agent.id: 1})
    gone = [agent_id for ids in await crowd.race_one(x.let_go(target=4, most=1)) for agent_id in ids]
    assert len(gone) == len(set(gone)) == 6
    assert crowd.desk.client.zcard(keys.POOL_READY) == 4


async def test_fifty_sweepers_replace_a_lost_agent_once(crowd: Crowd) -> None:
    for number in range(10):
        crowd.desk.live(f"s{number}", f"a{number}")
    crowd.desk.client.zadd(keys.DEADLINES, {f"agent:a{number}": 1 for number in range(10)})
    crowd.desk.trust_sweeps()
    sweeps = await crowd.race_one(x.expire_leases())
    assert Counter(agent.id for sweep in sweeps for agent in sweep.kill) == {f"a{number}": 1 for number in range(10)}
    assert {crowd.desk.field(f"session:s{number}", "generation") for number in range(10)} == {"2"}


async def test_heartbeats_of_one_agent_all_say_the_same(crowd: Crowd) -> None:
    agent, work = crowd.desk.assigned()
    verdicts = await crowd.race([x.heartbeat(agent, None if number % 2 else work) for number in range(CLIENTS)])
    words = Counter(verdict.word for verdict in verdicts)
    assert words == {Word.KEEP: CLIENTS // 2, Word.ASSIGNED: CLIENTS // 2}
    assert {verdict.assignment for verdict in verdicts if verdict.assignment} == {work}


async def test_a_forgotten_call_is_taken_back_by_one_of_fifty_who_claim_it(crowd: Crowd) -> None:
    _, work = crowd.desk.live()
    kept = remembered(crowd.desk)
    crowd.desk.client.flushall()
    calls = [x.agent_returns(agent, work, remembered=kept) for agent in agents(CLIENTS)]
    replies = await crowd.race(calls)
    assert Counter(replies) == {True: 1, False: CLIENTS - 1}
    assert crowd.desk.field("session:s", "agent_id") == f"a{replies.index(True)}"


async def test_an_ended_session_is_settled_once(crowd: Crowd) -> None:
    crowd.desk.session()
    crowd.desk.end()
    assert Counter(await crowd.race_one(x.session_settled("s"))) == {True: 1, False: CLIENTS - 1}


async def test_a_webhook_that_comes_fifty_times_is_taken_once(crowd: Crowd) -> None:
    crowd.desk.session()
    call = x.livekit_event("e", session_id="s", event="room_finished", room_sid="RM_1")
    assert Counter(await crowd.race_one(call)) == {"ended": 1, "again": CLIENTS - 1}
