"""What is looked at every few seconds: processes, descriptors, memory, keys, rooms, logs."""

import asyncio
import json
import re
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import redis
from livekit import api

from backend.agent.memory import read_pss_bytes
from backend.common import keys
from tests import leaks
from tests.acceptance.house import House
from tests.soak.processes import AGENT, Seen, descriptors, rss, see

MB, KB = 2**20, 2**10
LOOKED_AT = ("api", "worker", "worker child", "beat", "launcher", "redis", "livekit", "supervisord", AGENT)
"""Whose descriptors and memory are followed; of several processes the median, which one memory hog does not move."""
LIVEKIT_SECONDS = 5.0
ROOM_SECONDS = 45.0
"""A room whose agent never arrived, or died warm, goes when it is this old: the reconcile looks every 10 s."""


class Watch:
    """Looks at one house. ``series`` has every figure over time: (seconds since the first look, figure)."""

    def __init__(self, house: House) -> None:
        kept = json.loads((house.run_dir / "kept.json").read_text())
        url = f"redis://:{kept['redis_password']}@127.0.0.1:{kept['ports']['redis']}/0"
        # Any: redis-py types every answer for both settings of decode_responses.
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True, socket_timeout=LIVEKIT_SECONDS)
        self.broker: Any = redis.Redis.from_url(f"{url[:-1]}1", decode_responses=True, socket_timeout=LIVEKIT_SECONDS)
        self.series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.agent_ids: set[str] = set()
        """Of every agent that Redis ever knew."""
        self._house = house
        self._livekit = (
            f"http://127.0.0.1:{kept['ports']['livekit']}",
            kept["livekit_api_key"],
            kept["livekit_api_secret"],
        )
        self._began = time.monotonic()
        self._first_bytes = self._redis_bytes(), self._log_bytes()

    def see(self) -> Seen:
        """Look at the processes only."""
        return see(self._house.processes())

    def pids(self) -> dict[str, list[int]]:
        """Every process, by program."""
        return self.see().pids()

    def orphans(self, seen: Seen) -> list[str]:
        """Who has lost its parent and nobody holds."""
        files = (self._house.run_dir / "house" / "agents").glob("*.json")
        return seen.orphans(pid for path in files if (pid := _pid_in(path)))

    async def look(self) -> str:
        """Take every figure once; returns a line that says the most of it."""
        rooms = len(await self.rooms())
        figures = {**await asyncio.to_thread(self._figures), "rooms": rooms}
        at = time.monotonic() - self._began
        for name, figure in figures.items():
            self.series[name].append((at, figure))
        shown = ("agents", "orphans", "zombies", "rooms", "keys without a TTL", "PSS of all, MB")
        return ", ".join(f"{name} {figures[name]:.0f}" for name in shown if name in figures)

    async def rooms(self) -> dict[str, float]:
        """LiveKit's rooms, and the seconds since each was made."""
        async with api.LiveKitAPI(*self._livekit) as service, asyncio.timeout(LIVEKIT_SECONDS):
            reply = await service.room.list_rooms(api.ListRoomsRequest())
        return {room.name: time.time() - room.creation_time for room in reply.rooms}

    async def leftovers(self) -> list[str]:
        """What belongs to no warm or starting agent, once no call is under way."""
        seen = self.see()
        found = [f"orphan: {what}" for what in self.orphans(seen)]
        found += [f"{seen.zombies} zombies"] if seen.zombies else []
        found += [*leaks.leaked_keys(self.redis), *leaks.foreign_keys(self.broker)]
        for name in (keys.SESSION_OPEN, keys.SESSION_WAITING, keys.SETTLE_DUE):
            found += [f"{name}: {member}" for member in self.redis.zrange(name, 0, -1)]
        ids = self.redis.smembers(keys.host_agents("house"))
        records = [self.redis.hmget(keys.agent(agent_id), "state", "room") for agent_id in ids]
        found += [f"an agent is {state}" for state, _ in records if state not in ("warm", "starting")]
        agents = len(seen.pids().get(AGENT, ()))
        found += [f"{agents} agents run, {len(ids)} are known"] if agents > len(ids) else []
        kept = {room for _, room in records}
        rooms = {name: age for name, age in (await self.rooms()).items() if name not in kept}
        return found + [f"room {name}" for name, age in rooms.items() if age > ROOM_SECONDS]

    def agents_of(self, session_id: str) -> set[str]:
        """The agents that a session's log speaks of."""
        path = self._house.run_dir / "logs" / "agents" / f"{session_id}.log"
        return set(re.findall(r"a_\d+_[0-9a-f]{6}_\d+", path.read_text())) if path.exists() else set()

    def _figures(self) -> dict[str, float]:
        seen = self.see()
        pids = seen.pids()
        pss = {name: [(read_pss_bytes(pid) or 0) / MB for pid in each] for name, each in pids.items()}
        figures: dict[str, float] = {"agents": len(pids.get(AGENT, ()))}
        for name in LOOKED_AT:
            if name in pids:
                figures[f"descriptors of {name}"] = statistics.median(map(descriptors, pids[name]))
                figures[f"RSS of {name}, MB"] = statistics.median(map(rss, pids[name]))
        if AGENT in pids:
            figures["PSS of agent, MB"] = statistics.median(pss[AGENT])
        figures["PSS of all, MB"] = sum(map(sum, pss.values()))
        figures["orphans"], figures["zombies"] = len(self.orphans(seen)), seen.zombies
        return figures | self._stored()

    def _stored(self) -> dict[str, float]:
        names = list(self.redis.scan_iter(count=1000))
        self.agent_ids |= {name.removeprefix("agent:") for name in names if re.fullmatch(r"agent:a_\w+", name)}
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.pttl(name)
            ttls = pipe.execute()
        figures: dict[str, float] = {"keys without a TTL": ttls.count(-1), "keys in the broker": self.broker.dbsize()}
        if ended := self.redis.zcard(keys.SESSION_ENDED):  # their records and logs are kept for seven days
            figures["keys for each ended call"] = (len(names) - ttls.count(-1)) / ended
            figures["Redis for each ended call, KB"] = (self._redis_bytes() - self._first_bytes[0]) / KB / ended
            figures["logs for each ended call, KB"] = (self._log_bytes() - self._first_bytes[1]) / KB / ended
        return figures

    def _redis_bytes(self) -> int:
        return int(self.redis.info("memory")["used_memory"])

    def _log_bytes(self) -> int:
        files = [path for path in (self._house.run_dir / "logs").rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)


def _pid_in(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text())["pid"])
    except (OSError, ValueError, KeyError):  # it went, or is being written
        return None
