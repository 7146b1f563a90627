"""Agents to come: how many are missing, on which hosts, and the room in which each waits."""

from backend.common.exchange import reserve_spawns
from backend.orchestrator import placement, pool, session
from backend.orchestrator.house import House


async def make_warm_room(house: House) -> tuple[str, str]:
    """Make the room in which a new agent waits, and its token; ('', '') where agents are parked.

    Raises: UnavailableError
    """
    if not house.settings.prewarm_in_room:
        return "", ""
    name = session.new_session_id(await house.store.now_ms())
    await house.rooms.create(name)
    return name, house.rooms.agent_token(name)


async def refill(house: House) -> int:
    """Reserve the agents that are missing and let their hosts start them; returns how many."""
    hosts, line = await house.store.hosts(), await house.store.line()
    target = pool.wanted_warm(house.settings.prewarm_pool_size, len(hosts))
    wanted = pool.missing(target=target, waiting=line.waiting, warm=line.warm, starting=line.starting)
    if not wanted:
        return 0
    vacancies = [
        placement.Vacancy(host_id=host.id, free=host.free, at_once=pool.at_once(host.cores, host.starting))
        for host in hosts
    ]
    capacities = {host.id: host.capacity for host in hosts}
    started = 0
    for host_id, most in placement.spread(wanted, vacancies).items():
        base = f"a_{await house.store.now_ms()}_{session.short_id()}"
        call = reserve_spawns(host_id, capacity=capacities[host_id], target=target, most=most, base=base)
        for agent_id in await house.run(call):
            await house.commands.spawn(host_id, agent_id)
            started += 1
    return started
