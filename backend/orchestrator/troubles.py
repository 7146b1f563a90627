"""What is wrong with the hosts that are there: read for /health, told by their launchers."""

from typing import Any

from backend.common import keys
from backend.common.contract import Trouble
from backend.orchestrator.fleet_size import HOST_SEEN_MS

WORDS: dict[str, str] = {
    Trouble.MEMORY: "short of memory, starts no agents",
    Trouble.CRASHES: "its agents end before they are ready, so it starts few",
}


async def read_troubles(client: Any, now_ms: int) -> list[str]:
    """One sentence for each host that has any; an error is its kind and place only. Raises: redis.RedisError"""
    ids = await client.zrangebyscore(keys.HOSTS, now_ms - HOST_SEEN_MS, "+inf")
    async with client.pipeline(transaction=False) as pipe:
        for host_id in ids:
            pipe.hmget(keys.host(host_id), ["trouble", "last_error"])
        rows = await pipe.execute() if ids else []
    told = zip(ids, rows, strict=True)
    return [describe(host_id, trouble, error or "") for host_id, (trouble, error) in told if trouble]


def describe(host_id: str, trouble: str, last_error: str) -> str:
    """Say it in one sentence; a launcher that is newer than we are may name what we have no words for."""
    why = f" ({last_error})" if trouble == Trouble.CRASHES and last_error else ""
    return f"{host_id}: {WORDS.get(trouble, trouble)}{why}"
