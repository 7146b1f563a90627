"""The hosts that are there, added up: what a start and a refill ask for once a second, however many hosts there are."""

from dataclasses import dataclass
from typing import Any

from backend.common import keys
from backend.common.limits import Limits

HOST_SEEN_MS = Limits().host_seen


@dataclass(frozen=True, kw_only=True)
class FleetSize:
    """The hosts that were heard in the last ten seconds."""

    hosts: int = 0
    capacity: int = 0
    """Most agents of any state."""
    cores: int = 0


async def read_fleet_size(client: Any, now_ms: int) -> FleetSize:
    """Add up what the launchers said last. Raises: redis.RedisError"""
    ids = await client.zrangebyscore(keys.HOSTS, now_ms - HOST_SEEN_MS, "+inf")
    async with client.pipeline(transaction=False) as pipe:
        for host_id in ids:
            pipe.hmget(keys.host(host_id), ["capacity", "cores"])
        rows = await pipe.execute() if ids else []
    return FleetSize(
        hosts=len(ids),
        capacity=sum(int(capacity or 0) for capacity, _ in rows),
        cores=sum(int(cores or 0) for _, cores in rows),
    )
