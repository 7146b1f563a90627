"""What is counted for the whole fleet: Redis counts it where it happens, any API instance shows it.

All of it stands in the hash ``fleet:counts``. A counter is one field, ``ended:goodbye``. A histogram is a field for
each bucket, named by its upper bound in ms, and one for the sum: ``wait:250``, ``wait:inf``, ``wait:sum``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

START_MS = (25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1_000, 1_500, 2_500, 5_000, 10_000, 20_000, 30_000, 60_000)
"""What a caller waits for: close together where one call is better than another, and up to BOT_STARTUP_TIMEOUT."""
AGENT_MS = (5, 10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1_000, 1_500, 2_500, 5_000, 10_000)
"""What an agent does between its claim and its first sound."""
SPAWN_MS = (25, 50, 75, 100, 150, 250, 500, 750, 1_000, 1_500, 2_500, 5_000, 10_000, 20_000)
"""From the reserved slot to a warm agent: tens of ms when forked, seconds when spawned, 20 s at most."""
TALK_MS = (0, 10_000, 30_000, 60_000, 120_000, 180_000, 300_000, 600_000, 1_200_000, 1_800_000, 3_600_000)
"""Billed time of a session; 0 is one that nobody heard."""

HISTOGRAMS_MS = {
    "wait": START_MS,
    "confirmed": START_MS,
    "caller_joined": START_MS,
    "can_hear": START_MS,
    "agent_joined": AGENT_MS,
    "agent_built": AGENT_MS,
    "agent_connected": AGENT_MS,
    "agent_first_sound": AGENT_MS,
    "silence": START_MS,
    "spawn": SPAWN_MS,
    "talk": TALK_MS,
}
"""Every histogram and the upper bounds of its buckets, in ms."""


def as_lua() -> str:
    """The histograms as a Lua table, for the operations; bounds are strings, which cost a call nothing."""
    rows = (f"{name} = '{' '.join(map(str, bounds))}'" for name, bounds in HISTOGRAMS_MS.items())
    return f"{{{', '.join(rows)}}}"


@dataclass(frozen=True, kw_only=True)
class HostFigures:
    """One host as its launcher and the exchange know it."""

    id: str
    seen_ms: int
    slots: int
    """Agents in any state that take a place of its capacity."""
    record: Mapping[str, str]
    """``host:{id}``; empty when it was not heard for 15 s."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The fleet at one moment; times in ms of Redis' clock, 0 for never."""

    now_ms: int
    waiting: int
    open: int
    live: int
    warm: int
    starting: int
    unsettled: int
    oldest_waiting_ms: int
    oldest_unsettled_ms: int
    swept_ms: int
    counts: Mapping[str, int]
    hosts: tuple[HostFigures, ...]

    def age(self, since_ms: int) -> float:
        """Seconds since then, 0.0 for never."""
        return max(0, self.now_ms - since_ms) / 1000 if since_ms else 0.0

    @classmethod
    def read(cls, reply: Any) -> "Fleet":
        """Read what read_fleet.lua returns."""
        numbers, counts, *hosts = reply
        names = [name for name in cls.__dataclass_fields__ if name not in ("counts", "hosts")]
        return cls(
            **dict(zip(names, numbers, strict=True)),
            counts={name: int(value) for name, value in _pairs(counts).items()},
            hosts=tuple(
                HostFigures(id=host_id, seen_ms=seen_ms, slots=slots, record=_pairs(record))
                for host_id, seen_ms, slots, record in hosts
            ),
        )


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[0::2], flat[1::2], strict=True))
