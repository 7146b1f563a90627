"""Agents to come and to go: the pool follows the demand; and the room in which each one waits."""

import asyncio

from backend.common.contract import Reserved
from backend.common.exchange import let_go, reserve_spawns
from backend.orchestrator import demand, pool, session
from backend.orchestrator.house import House

RESERVED_AT_ONCE = 100
"""Commands to send before the next look: more would hold up the others that refill."""
LET_GO_AT_ONCE = 1
"""A refill comes each second, and a target falls slower than that."""
PASSES = 8
"""A burst is served by several passes a second: a core starts one agent at a time."""
GOES_ON_MS = 900
"""How long the passes take, at the most; then it is another refill's turn."""


async def make_warm_room(house: House) -> tuple[str, str]:
    """Make the room in which a new agent waits, and its token; ('', '') for one that is parked, or awaited.

    Raises: UnavailableError
    """
    if not house.settings.prewarm_in_room or await _is_awaited(house):
        return "", ""
    name = session.new_session_id(await house.store.now_ms())
    await house.rooms.create(name)
    return name, house.rooms.agent_token(name)


async def target(house: House) -> int:
    """Warm agents wanted in the fleet now. Raises: redis.RedisError"""
    fleet, known = await house.store.fleet_size(), await house.store.demand()
    least, most = pool.bounds(
        size=house.settings.prewarm_pool_size,
        largest=house.settings.prewarm_pool_max,
        hosts=fleet.hosts,
        capacity=fleet.capacity,
    )
    now = demand.faded(known, await house.store.now_ms(), house.limits)
    return demand.target(now, house.limits, least=least, most=most)


async def _is_awaited(house: House) -> bool:
    """Whether a session in the line will take this agent: it has a room, and joining another first would cost."""
    line = await house.store.line()
    return line.waiting >= max(1, line.starting)


async def refill(house: House) -> int:
    """Let the hosts start the agents that are missing, or end one that is too many; returns how many are started."""
    return len((await _refill(house)).agents)


async def refill_while_missing(house: House) -> None:
    """Refill as the hosts get room for the next ones; after ``PASSES`` another refill goes on.

    One at a time in the fleet, and only while something starts: who waits here keeps a worker's process from its work.
    """
    if not (await _refill(house)).goes_on or not await house.store.refills_alone(GOES_ON_MS):
        return
    for _ in range(PASSES):
        await asyncio.sleep(house.limits.refill_look / 1000)
        if not (await _refill(house)).goes_on:
            return


async def _refill(house: House) -> Reserved:
    wanted = await target(house)
    call = reserve_spawns(
        target=wanted,
        most=RESERVED_AT_ONCE,
        base=f"a_{await house.store.now_ms()}_{session.short_id()}",
        cores=(await house.store.fleet_size()).cores,
    )
    reserved = await house.run(call)
    for agent in reserved.agents:
        await house.commands.spawn(agent.host_id, agent.id)
    await house.run(let_go(target=wanted, most=LET_GO_AT_ONCE))
    return reserved
