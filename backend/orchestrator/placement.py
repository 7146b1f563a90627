"""Which host gives a caller its agent, and which one starts the next.

Both are chosen in Redis, in the step that takes the agent or the slot (lua/_pool.lua, reserve_spawns.lua): two
sorted sets of hosts, one by ``load`` and one by ``room``, of which the first and the last are O(log hosts) away.
These are the same scores, for whoever has no Redis: the simulation.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """A host and its agents; ``slots`` are those of any state, the starting and the warm among them."""

    capacity: int
    cores: int
    slots: int = 0
    starting: int = 0
    warm: int = 0


def load(host: Occupancy) -> float | None:
    """How full of calls the host is, 0 to 1: the least loaded gives the agent. None when it has none to give.

    Warm and starting agents do not count: they cost next to nothing, and go.
    """
    if not host.warm:
        return None
    return (host.slots - host.starting - host.warm) / max(1, host.capacity)


def room(host: Occupancy) -> int | None:
    """Its free slots: the host with the most starts the next agent. None when it may start none now.

    A core starts one agent at a time: a start is work for a core, and calls run on the same ones.
    """
    if host.slots >= host.capacity or host.starting >= host.cores:
        return None
    return host.capacity - host.slots
