"""What is left of the calls afterwards: processes, rooms, keys, and who has whom."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterable

import psutil
from livekit import api

from backend.common import keys
from tests import leaks
from tests.chaos.calls import CallInChaos
from tests.chaos.parts import ChaosHouse


def strays(house: ChaosHouse) -> list[str]:
    """Zombies of the house, and processes of it that nobody owns: no child of make run, no agent of the launcher."""
    assert house._process, "not started"
    tree = psutil.Process(house._process.pid)
    family = {tree.pid, *(child.pid for child in tree.children(recursive=True))} | set(house.launched().values())
    found = [process for process in house.processes() if process.pid not in family]
    found += [process for process in psutil.process_iter() if _is_zombie(process, family)]
    return [what for what in map(_describe, found) if what]


def doubles(house: ChaosHouse, calls: Iterable[CallInChaos]) -> list[str]:
    """Starts that made two calls, and sessions or agents that have two of each other."""
    redis = house.redis
    found = []
    sessions = {call.session_id for call in calls}
    records = {name: redis.hgetall(keys.session(name)) for name in redis.zrange(keys.SESSION_ALL, 0, -1)}
    talked = Counter(record.get("start_key") for record in records.values() if record.get("started_at_ms"))
    found += [f"two talks by one key {key}" for key, count in talked.items() if key and count > 1]
    holders = Counter(
        redis.hget(keys.agent(agent_id), "session_id")
        for agent_id in house.launched()
        if redis.hget(keys.agent(agent_id), "state") in ("claimed", "busy")
    )
    found += [f"{count} agents for {name}" for name, count in holders.items() if name in sessions and count > 1]
    redis.close()
    return found


def left_keys(house: ChaosHouse) -> list[str]:
    """Keys without an owner or a TTL, and what still speaks of a call although all have ended."""
    redis = house.redis
    found = leaks.leaked_keys(redis)
    for key in (keys.SESSION_OPEN, keys.SESSION_WAITING, keys.SETTLE_DUE):
        found += [f"{key}: {name}" for name in redis.zrange(key, 0, -1)]
    found += [f"{keys.SESSION_LIVE}: {name}" for name in redis.smembers(keys.SESSION_LIVE)]
    found += [f"{keys.DEADLINES}: {name}" for name in redis.zrange(keys.DEADLINES, 0, -1) if name[:6] != "agent:"]
    found += list(redis.scan_iter("user:*:sessions")) + list(redis.scan_iter("session:*:prompt"))
    living = house.launched()
    found += [f"slot of {name}" for name in redis.smembers(keys.host_agents("house")) if name not in living]
    redis.close()
    return found


async def rooms(house: ChaosHouse) -> set[str]:
    """Every room on the LiveKit server, less those in which warm agents wait."""
    async with _livekit(house) as service:
        answer = await service.room.list_rooms(api.ListRoomsRequest())
    return {room.name for room in answer.rooms} - await asyncio.to_thread(_warm_rooms, house)


def _warm_rooms(house: ChaosHouse) -> set[str]:
    redis = house.redis
    found = {str(redis.hget(keys.agent(agent_id), "room")) for agent_id in house.launched()}
    redis.close()
    return found


def _livekit(house: ChaosHouse) -> api.LiveKitAPI:
    kept = house.kept()
    address = f"http://127.0.0.1:{kept['ports']['livekit']}"
    return api.LiveKitAPI(address, kept["livekit_api_key"], kept["livekit_api_secret"])


def _is_zombie(process: psutil.Process, family: set[int]) -> bool:
    try:
        is_ours = process.ppid() in family | {1, os.getpid()} and process.pid != os.getpid()
        return is_ours and process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {process.status()} {process.name()} {' '.join(process.cmdline())[:100]}"
    except psutil.Error:
        return ""  # it went while we looked
