"""Every read and write of Redis that is not an operation of the exchange."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from backend.common import keys
from backend.common.contract import AgentState, SessionState
from backend.common.settings import CommonSettings
from backend.orchestrator import demand
from backend.orchestrator.cursor import read_cursor, write_cursor
from backend.orchestrator.demand import Demand
from backend.orchestrator.fleet_size import HOST_SEEN_MS, FleetSize, read_fleet_size

REDIS_SECONDS = 1.0
CONNECTIONS = 64
"""A burst waits for one of these for a second at most; redis-py's own pool would raise at once."""
PROMPT_SECONDS = 0.05
FLEET_SECONDS = 1.0
CONFIG_TTL_SECONDS = 90 * 24 * 3_600
KEPT_MS = 7 * 24 * 3_600_000
LOST_HOST_MS = 3_600_000
PAGE = 200
"""Records read at once while a list is filtered."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a host's launcher said last."""

    id: str
    capacity: int
    cores: int
    agents: int
    """Slots taken, in any state."""
    starting: int
    warm: int
    busy: int
    seen_ms: int

    @property
    def free(self) -> int:
        """Slots left."""
        return max(0, self.capacity - self.agents)


@dataclass(frozen=True, kw_only=True)
class Line:
    """The waiting line and the pool, counted at one moment."""

    waiting: int
    oldest_ms: int
    """How long the head of the line has waited; 0 when it is empty."""
    warm: int
    starting: int


_COUNTED = (AgentState.STARTING, AgentState.WARM, AgentState.BUSY, AgentState.STOPPING)


class Store:
    """One connection pool to Redis. Every method raises redis.RedisError when Redis does not answer within a second."""

    def __init__(self, settings: CommonSettings) -> None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.redis_url,
            decode_responses=True,
            max_connections=CONNECTIONS,
            timeout=REDIS_SECONDS,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            # A connection that Redis closed when it restarted is tried anew once; every operation may be repeated.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        # Any: redis-py's types do not know decode_responses; the methods here say what comes out.
        self.client: Any = redis.asyncio.Redis.from_pool(pool)
        self._clock_offset_ms: float | None = None
        self._fleet_size = (-FLEET_SECONDS, FleetSize())

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def now_ms(self) -> int:
        """Redis' clock, asked once and then carried on by this process' monotonic one."""
        if self._clock_offset_ms is None:
            await self.read_clock()
        return int(time.monotonic() * 1000 + (self._clock_offset_ms or 0))

    async def read_clock(self) -> int:
        """Ask Redis what time it is."""
        before = time.monotonic()
        seconds, micros = await self.client.time()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        # An answer that was long under way says what time it was: starts would seem to come too late.
        if self._clock_offset_ms is None or time.monotonic() - before < PROMPT_SECONDS:
            self._clock_offset_ms = now_ms - time.monotonic() * 1000
        return now_ms

    async def session(self, session_id: str) -> dict[str, str]:
        """The session's record; empty when there is none."""
        record: dict[str, str] = await self.client.hgetall(keys.session(session_id))
        return record if "state" in record else {}  # late reports may leave a few fields of one that is gone

    async def agent_state(self, agent_id: str) -> str:
        """The agent's state; '' when Redis does not know it."""
        return str(await self.client.hget(keys.agent(agent_id), "state") or "")

    async def user_config(self, user_id: str) -> dict[str, str]:
        """The defaults for this user's next call."""
        config: dict[str, str] = await self.client.hgetall(keys.user_config(user_id))
        return config

    async def keep_user_config(self, user_id: str, config: Mapping[str, str]) -> None:
        """Remember what this user's call was started with."""
        key = keys.user_config(user_id)
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=dict(config))
            pipe.expire(key, CONFIG_TTL_SECONDS)
            await pipe.execute()

    async def forget_start(self, start_key: str) -> None:
        """Let the next start with this key be a new one; '' is no key."""
        if start_key:
            await self.client.delete(keys.start(start_key))

    async def refills_alone(self, for_ms: int) -> bool:
        """Whether no other refill of the fleet goes on; none does for so long."""
        return bool(await self.client.set(keys.POOL_REFILLING, "1", nx=True, px=for_ms))

    async def hosts(self) -> list[Host]:
        """The hosts that were heard in the last ten seconds."""
        now_ms = await self.now_ms()
        ids: list[str] = await self.client.zrangebyscore(keys.HOSTS, now_ms - HOST_SEEN_MS, "+inf")
        async with self.client.pipeline(transaction=False) as pipe:
            for host_id in ids:
                pipe.hgetall(keys.host(host_id))
                pipe.smembers(keys.host_agents(host_id))
            answers = await pipe.execute() if ids else []
        records, slots = answers[0::2], answers[1::2]
        states = await self._agent_states({agent_id for members in slots for agent_id in members})
        rows = zip(ids, records, slots, strict=True)
        return [_host(host_id, record, [states[a] for a in members]) for host_id, record, members in rows if record]

    async def _agent_states(self, agent_ids: Iterable[str]) -> dict[str, str]:
        ids = list(agent_ids)
        async with self.client.pipeline(transaction=False) as pipe:
            for agent_id in ids:
                pipe.hget(keys.agent(agent_id), "state")
            states = await pipe.execute() if ids else []
        return dict(zip(ids, (state or "" for state in states), strict=True))

    async def fleet_size(self) -> FleetSize:
        """The live hosts together; while there are any, asked once a second at most: a start has no time for more."""
        if not self._fleet_size[1].hosts or time.monotonic() - self._fleet_size[0] > FLEET_SECONDS:
            self._fleet_size = (time.monotonic(), await read_fleet_size(self.client, await self.read_clock()))
        return self._fleet_size[1]

    async def demand(self) -> Demand:
        """What is known of the callers of late."""
        return demand.read(await self.client.hgetall(keys.POOL_DEMAND))

    async def line(self) -> Line:
        """The waiting line and the pool."""
        now_ms = await self.now_ms()
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.zcard(keys.SESSION_WAITING)
            pipe.zrange(keys.SESSION_WAITING, 0, 0, withscores=True)
            pipe.zcard(keys.POOL_READY)
            pipe.scard(keys.POOL_STARTING)
            waiting, head, warm, starting = await pipe.execute()
        oldest_ms = max(0, now_ms - int(head[0][1]) // 1000) if head else 0
        return Line(waiting=waiting, oldest_ms=oldest_ms, warm=warm, starting=starting)

    async def open_sessions(self) -> dict[str, int]:
        """The unended sessions and when they were made, ms."""
        rows = await self.client.zrange(keys.SESSION_OPEN, 0, -1, withscores=True)
        return {session_id: int(created_ms) for session_id, created_ms in rows}

    async def session_states(self) -> dict[str, int]:
        """How many unended sessions there are in each state."""
        counts = dict.fromkeys((SessionState.WAITING, SessionState.ASSIGNED, SessionState.LIVE), 0)
        ids = list(await self.open_sessions())
        for start in range(0, len(ids), PAGE):
            for state in await self._states(ids[start : start + PAGE]):
                if state in counts:
                    counts[SessionState(state)] += 1
        return {state.value: count for state, count in counts.items()}

    async def _states(self, ids: list[str]) -> list[str | None]:
        async with self.client.pipeline(transaction=False) as pipe:
            for session_id in ids:
                pipe.hget(keys.session(session_id), "state")
            states: list[str | None] = await pipe.execute()
        return states

    async def agent_counts(self) -> dict[str, int]:
        """How many agents the whole fleet has in each state; claimed ones are busy."""
        hosts = [str(host_id) for host_id in await self.client.zrange(keys.HOSTS, 0, -1)]
        async with self.client.pipeline(transaction=False) as pipe:
            for host_id in hosts:
                pipe.smembers(keys.host_agents(host_id))
            slots = await pipe.execute() if hosts else []
        states = list((await self._agent_states({agent for members in slots for agent in members})).values())
        counts = {name.value: states.count(name) for name in _COUNTED}
        return counts | {"busy": counts["busy"] + states.count(AgentState.CLAIMED)}

    async def ended_since(self, since_ms: int) -> int:
        """How many sessions ended since then."""
        return int(await self.client.zcount(keys.SESSION_ENDED, since_ms, "+inf"))

    async def sessions(
        self, *, state: str | None, limit: int, cursor: str | None
    ) -> tuple[list[tuple[str, dict[str, str]]], str | None]:
        """A page of sessions, newest first, and the cursor of the next one (None at the end).

        Raises: ValueError for a cursor that is not one of ours.
        """
        index = keys.SESSION_ALL if state in (None, SessionState.ENDED) else keys.SESSION_OPEN
        offset_ms, last_id = read_cursor(cursor)
        found: list[tuple[str, dict[str, str]]] = []
        skip = 0
        while len(found) < limit + 1:
            rows = await self.client.zrange(
                index, offset_ms, "-inf", byscore=True, desc=True, offset=skip, num=PAGE, withscores=True
            )
            if not rows:
                break
            skip += len(rows)
            # Sessions made in the same millisecond stand in reverse order of their ids.
            ids = [name for name, score in rows if last_id is None or score < float(offset_ms) or name < last_id]
            found += [(name, record) for name, record in await self._records(ids) if state in (None, record["state"])]
        following = (
            write_cursor(found[limit - 1][0], found[limit - 1][1]["created_at_ms"]) if len(found) > limit else None
        )
        return found[:limit], following

    async def _records(self, ids: list[str]) -> list[tuple[str, dict[str, str]]]:
        async with self.client.pipeline(transaction=False) as pipe:
            for session_id in ids:
                pipe.hgetall(keys.session(session_id))
            records = await pipe.execute() if ids else []
        return [(name, record) for name, record in zip(ids, records, strict=True) if "state" in record]

    async def unsettled(self, most: int) -> list[str]:
        """The outbox: ended sessions, the oldest first."""
        ids: list[str] = await self.client.zrange(keys.SETTLE_DUE, 0, most - 1)
        return ids

    async def is_resting(self, lease_ms: int) -> bool:
        """Whether Redis was away or empty a short while ago: what it does not know may still come back."""
        quiet_until_ms = await self.client.hget(keys.SWEEP, "quiet_until_ms")
        return quiet_until_ms is None or await self.read_clock() < int(quiet_until_ms) + lease_ms

    async def warm_rooms(self) -> set[str]:
        """The rooms in which warm agents wait."""
        agents = await self.client.zrange(keys.POOL_READY, 0, -1)
        async with self.client.pipeline(transaction=False) as pipe:
            for agent_id in agents:
                pipe.hget(keys.agent(agent_id), "room")
            rooms = await pipe.execute() if agents else []
        return {room for room in rooms if room}

    async def prune(self) -> list[str]:
        """Forget sessions older than a week and hosts unheard for an hour; returns those hosts."""
        now_ms = await self.read_clock()
        lost: list[str] = await self.client.zrangebyscore(keys.HOSTS, "-inf", now_ms - LOST_HOST_MS)
        async with self.client.pipeline(transaction=False) as pipe:
            pipe.zremrangebyscore(keys.SESSION_ENDED, "-inf", now_ms - KEPT_MS)
            pipe.zremrangebyscore(keys.SESSION_ALL, "-inf", now_ms - KEPT_MS)
            pipe.zremrangebyscore(keys.HOSTS, "-inf", now_ms - LOST_HOST_MS)
            await pipe.execute()
        return lost

    async def memory_bytes(self) -> int:
        """What Redis holds."""
        return int((await self.client.info("memory"))["used_memory"])

    async def ping(self) -> None:
        """Return when Redis answers."""
        await self.client.ping()


def _host(host_id: str, record: Mapping[str, str], states: list[str]) -> Host:
    return Host(
        id=host_id,
        capacity=int(record.get("capacity") or 0),
        cores=int(record.get("cores") or 1),
        agents=len(states),
        starting=states.count(AgentState.STARTING),
        warm=states.count(AgentState.WARM),
        busy=states.count(AgentState.BUSY) + states.count(AgentState.CLAIMED),
        seen_ms=int(record.get("seen_ms") or 0),
    )
