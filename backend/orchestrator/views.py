"""What the API shows: sessions, the fleet's figures, the health of the parts."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import RedisError

from backend.common.contract import End
from backend.orchestrator import session, supply
from backend.orchestrator.errors import GreenroomError
from backend.orchestrator.house import House
from backend.orchestrator.schemas import EndDetails, EndResponse, SessionView
from backend.orchestrator.store import Host
from backend.orchestrator.troubles import read_troubles

CHECK_SECONDS = 2.5
SEEN_SECONDS = 0.25


def session_view(session_id: str, record: Mapping[str, str], now_ms: int) -> SessionView:
    """One session as the API shows it."""
    talked_ms = session.talked_ms(record, now_ms)
    seconds = None if talked_ms is None else session.billed_seconds(talked_ms)
    fields: dict[str, Any] = {
        "session_id": session_id,
        "room_name": session_id,
        "status": record["state"],
        "user_name": record.get("user_name", ""),
        "voice_id": record.get("voice_id", ""),
        "agent_id": record.get("agent_id") or None,
        "agent_pid": int(record["agent_pid"]) if record.get("agent_pid") else None,
        "host_id": record.get("host_id") or None,
        "generation": int(record.get("generation") or 1),
        "created_at": session.iso_time(record["created_at_ms"]),
        "started_at": session.iso_time(record.get("started_at_ms")),
        "ended_at": session.iso_time(record.get("ended_at_ms")),
        "end_reason": record.get("end_reason") or None,
        "ended_by": record.get("ended_by") or None,
        "duration_seconds": seconds,
        "duration_minutes": None if seconds is None else session.billed_minutes(seconds),
    }
    return SessionView(**fields)


def end_view(session_id: str, end: End) -> EndResponse:
    """What an end came to; true from the moment of the end on, hence the same in every answer."""
    seconds = session.billed_seconds(end.billed_ms)
    return EndResponse(
        message=f"Session {session_id} ended and cleaned up",
        details=EndDetails(
            session_id=session_id,
            celery_task_revoked=True,
            process_killed=True,
            redis_cleaned=True,
            duration_seconds=seconds,
            duration_minutes=session.billed_minutes(seconds),
        ),
    )


async def stats(house: House) -> dict[str, Any]:
    """The whole fleet, not this process. Raises: redis.RedisError"""
    before = time.monotonic()
    now_ms = await house.store.read_clock()
    latency_ms = _ms_since(before)
    hosts, line = await house.store.hosts(), await house.store.line()
    midnight = datetime.fromtimestamp(now_ms / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    ended = await house.store.ended_since(int(midnight.timestamp() * 1000))
    return {
        "sessions": {**await house.store.session_states(), "endedToday": ended},
        "agents": await house.store.agent_counts(),
        "pool": {
            "target": await supply.target(house),
            "warm": line.warm,
            "starting": line.starting,
            "capacity": sum(host.capacity for host in hosts),
        },
        "waiting": {"count": line.waiting, "oldestSeconds": round(line.oldest_ms / 1000, 1)},
        "hosts": [_host_view(host, now_ms) for host in hosts],
        "redis": {"connected": True, "latencyMs": latency_ms, "usedMemoryBytes": await house.store.memory_bytes()},
        "queues": await house.commands.queue_lengths([host.id for host in hosts]),
    }


def _host_view(host: Host, now_ms: int) -> dict[str, Any]:
    return {
        "hostId": host.id,
        "capacity": host.capacity,
        "warm": host.warm,
        "busy": host.busy,
        "lastSeenSeconds": round(max(0, now_ms - host.seen_ms) / 1000, 1),
    }


class Health:
    """The last look at every part. Whoever asks needs no key: so one look at a time, and four a second at most."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._seen_at, self._report = -math.inf, (False, dict[str, Any]())

    async def look(self, house: House) -> tuple[bool, dict[str, Any]]:
        """As ``health`` tells, a moment ago."""
        async with self._turn:
            if time.monotonic() - self._seen_at > SEEN_SECONDS:
                self._report = await health(house)
                self._seen_at = time.monotonic()
            return self._report


async def health(house: House) -> tuple[bool, dict[str, Any]]:
    """Whether a call can be started, and the state of each part. A full house is well, a degraded one takes calls."""

    async def has_hosts() -> str:
        if not await house.store.hosts():
            raise GreenroomError("no launcher was heard in the last 10 s")
        return "; ".join(await read_troubles(house.store.client, await house.store.now_ms()))

    checks: dict[str, Callable[[], Awaitable[str | None]]] = {
        "redis": house.store.ping,
        "broker": house.commands.ping,
        "livekit": house.rooms.ping,
        "hosts": has_hosts,
    }
    results = await asyncio.gather(*(_check(check) for check in checks.values()))
    components = dict(zip(checks, results, strict=True))
    # Warm agents are claimed without the broker; none is started without it, so it counts.
    states = {component["state"] for component in components.values()}
    status = "unavailable" if "failed" in states else "degraded" if "degraded" in states else "ok"
    return "failed" not in states, {"status": status, "components": components}


async def _check(check: Callable[[], Awaitable[str | None]]) -> dict[str, Any]:
    """Check one part; what the check returns is wrong with it, though it works."""
    before = time.monotonic()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            trouble = await check()
    except (RedisError, GreenroomError, OSError, TimeoutError) as error:
        detail = str(error) if isinstance(error, GreenroomError) else type(error).__name__
        return {"state": "failed", "latencyMs": _ms_since(before), "detail": detail}
    if trouble:
        return {"state": "degraded", "latencyMs": _ms_since(before), "detail": trouble}
    return {"state": "ok", "latencyMs": _ms_since(before)}


def _ms_since(before: float) -> float:
    return round((time.monotonic() - before) * 1000, 2)
