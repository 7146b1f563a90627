"""50 clients claim over sockets: how fast, how late, nothing twice, nothing lost.

Usage: python -m tests.benchmarks.race [claims] [sessions already there] [clients]

Each client is one connection that plays both sides in turn: an agent arrives, a session arrives, whoever is
assigned confirms, the session ends, the exit is reported. A claim is a session_arrives or an agent_arrives that
matched. The replies of all clients are compared at the end: first as fast as they can, then at 400 claims/s.
Ctrl-C ends either early; what was raced so far is judged all the same. A million takes ten minutes and more.
"""

import asyncio
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment, EndReason, Start
from backend.common.limits import Limits
from backend.local.steps import say
from tests.benchmarks.wire import Wire
from tests.valkey_server import Valkey

CEILING = 10**7
"""Nobody is refused here: what is measured is the claim."""

PACED_CLAIMS_PER_SECOND = 400
PACED_CLAIMS = 10_000
"""Enough for a p99; at most, however many are made flat out."""


@dataclass
class Race:
    """What all clients of one run have seen together."""

    total: int
    claims: int = 0
    is_over: bool = False
    sequence: int = 0
    agents: dict[str, Agent] = field(default_factory=dict)
    by_session: Counter[Assignment] = field(default_factory=Counter)
    by_agent: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def stop(self) -> None:
        """Be content with what was raced so far."""
        self.is_over = True

    def note(self, started: float, work: Assignment, agent_id: str) -> None:
        self.seconds.append(time.perf_counter() - started)
        self.claims += 1
        self.by_session[work] += 1
        self.by_agent[agent_id] += 1


async def play(wire: Wire, race: Race, pause: float) -> None:
    """Make an agent and a session arrive, in either order, until enough claims were made."""
    while race.claims < race.total and not race.is_over:
        if pause:
            await asyncio.sleep(random.expovariate(1 / pause))
        race.sequence += 1
        number = race.sequence
        for step in random.sample([offer_agent, ask_for_session], 2):
            await step(wire, race, number)


async def offer_agent(wire: Wire, race: Race, number: int) -> None:
    agent = Agent(id=f"a{race.total}_{number}", nonce=f"n{number}", host_id=f"h{number % 20}")
    race.agents[agent.id] = agent
    started = time.perf_counter()
    offered = await wire.run(x.agent_arrives(agent))
    if isinstance(offered, Assignment):
        race.note(started, offered, agent.id)
        await talk(wire, race, offered, agent)


async def ask_for_session(wire: Wire, race: Race, number: int) -> None:
    started = time.perf_counter()
    arrival = await wire.run(x.session_arrives(_start(f"s{race.total}_{number}", f"u{number % 997}")))
    if arrival.state == "assigned":
        work = Assignment(session_id=arrival.session_id, generation=1)
        race.note(started, work, arrival.agent_id)
        await talk(wire, race, work, race.agents[arrival.agent_id])


async def talk(wire: Wire, race: Race, work: Assignment, agent: Agent) -> None:
    assert await wire.run(x.confirm_claim(agent, work)), "a claim could not be confirmed"
    end = await wire.run(x.end_session(work.session_id, EndReason.GOODBYE, generation=work.generation))
    assert end, "the session is not its agent's"
    assert end.is_first
    assert (await wire.run(x.agent_exited(agent, exit_code=0))).is_first
    await wire.run(x.session_settled(work.session_id))
    del race.agents[agent.id]


def _start(session_id: str, user_id: str) -> Start:
    return Start(
        proposed_id=session_id, user_id=user_id, longest_ms=600_000, fleet_ceiling=CEILING, user_ceiling=CEILING
    )


async def fill(wire: Wire, count: int) -> None:
    """Put ``count`` live sessions with their agents into Redis."""
    for number in range(count):
        agent = Agent(id=f"old{number}", nonce="n", host_id=f"old{number % 500}")
        await wire.run(x.agent_arrives(agent))
        arrival = await wire.run(x.session_arrives(_start(f"oldsession{number}", f"old{number % 5000}")))
        await wire.run(x.confirm_claim(agent, Assignment(session_id=arrival.session_id, generation=1)))


async def run(wires: list[Wire], *, present: int, total: int, pause: float) -> None:
    """Let all clients claim, compare what they saw with what Redis has, and print the figures."""
    agents_left = await _count(wires[0], keys.POOL_READY), await _count(wires[0], keys.SESSION_WAITING)
    assert agents_left == (0, 0), "the run before left something"
    race = Race(total=total)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, race.stop)
    began = time.perf_counter()
    await asyncio.gather(*(play(wire, race, pause) for wire in wires))
    seconds = time.perf_counter() - began
    warm, line = await _count(wires[0], keys.POOL_READY), await _count(wires[0], keys.SESSION_WAITING)
    twice = sum(count - 1 for seen in (race.by_session, race.by_agent) for count in seen.values())
    lost = abs(await _count(wires[0], keys.SESSION_OPEN) - present - line) + abs(len(race.agents) - warm)
    race.seconds.sort()
    p50, p99, worst = (race.seconds[int((len(race.seconds) - 1) * part)] * 1e3 for part in (0.5, 0.99, 1))
    say(f"{'paced' if pause else 'flat out'}: {race.claims} claims by {len(wires)} clients, {present} sessions present")
    say(f"  {race.claims / seconds:.0f} claims/s; p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {worst:.1f} ms")
    say(f"  Redis' own time for an operation: {await server_time(wires[0]):.0f} us (a claim with its end is six)")
    say(f"  duplicates {twice}, losses {lost}; left warm {warm}, waiting {line}")
    assert twice == lost == 0
    await clear(wires[0], race)


async def clear(wire: Wire, race: Race) -> None:
    """End what was not matched: the last agents and sessions that came without a partner."""
    for agent in race.agents.values():
        await wire.run(x.agent_exited(agent, exit_code=0))
    waiting = await wire.command("ZRANGE", keys.SESSION_WAITING, 0, -1)
    for session_id in waiting if isinstance(waiting, list) else []:
        await wire.run(x.end_session(session_id, EndReason.CLIENT_END))


async def server_time(wire: Wire) -> float:
    """Microseconds that Redis worked for one operation, on average since the last question."""
    text = str(await wire.command("INFO", "commandstats"))
    await wire.command("CONFIG", "RESETSTAT")
    figure = re.search(r"cmdstat_evalsha:.*?usec_per_call=([\d.]+)", text)
    assert figure, "no operation was made"
    return float(figure[1])


async def _count(wire: Wire, key: str) -> int:
    answer = await wire.command("ZCARD", key)
    assert isinstance(answer, int)
    return answer


async def main(valkey: Valkey, total: int, present: int, clients: int) -> None:
    exchange = x.Exchange(limits=Limits(tombstone_ttl=3_000, settled_ttl=3_000, lease=3_600_000))
    ends = [await asyncio.open_connection("127.0.0.1", valkey.port) for _ in range(clients)]
    wires = [Wire(exchange, *end) for end in ends]
    for text in exchange.scripts.values():
        await wires[0].command("SCRIPT", "LOAD", text)
    await fill(wires[0], present)
    await wires[0].command("CONFIG", "RESETSTAT")
    await run(wires, present=present, total=total, pause=0)
    await run(
        wires, present=present, total=max(1, min(total // 4, PACED_CLAIMS)), pause=clients / PACED_CLAIMS_PER_SECOND
    )
    for wire in wires:
        wire.writer.close()


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    claims, there, crowd = [*given, *(10_000, 0, 50)[len(given) :]]
    with tempfile.TemporaryDirectory() as folder:
        server = Valkey(Path(folder))
        server.start()
        try:
            asyncio.run(main(server, claims, there, crowd))
        finally:
            server.client.close()
            server.kill()
