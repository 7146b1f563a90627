"""The stages of one call and when each was reached, and what many calls together say about one of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """What every call goes through; the value is the name in JSON."""

    ANSWERED = "answered"
    CONNECTED = "connected"
    AGENT_SEEN = "agentSeen"
    SUBSCRIBED = "subscribed"
    FIRST_SOUND = "firstSound"
    ENDED = "ended"


MEANINGS = {
    Stage.ANSWERED: "the POST that starts the session was answered",
    Stage.CONNECTED: "the caller is in the room",
    Stage.AGENT_SEEN: "the caller sees the agent in the room",
    Stage.SUBSCRIBED: "the agent's sound can come",
    Stage.FIRST_SOUND: "the agent is heard",
    Stage.ENDED: "the session has ended",
}


class Stages:
    """When one call reached what: milliseconds since ``begin``, on the clock of ``time.monotonic()``."""

    def __init__(self, on_reached: Callable[[Stage, float], None] | None = None) -> None:
        self.reached_ms: dict[Stage, float] = {}
        self.began = time.monotonic()
        self._on_reached = on_reached

    def begin(self) -> None:
        """Count from now on."""
        self.began = time.monotonic()

    def reach(self, stage: Stage, at: float | None = None) -> None:
        """Note the first time, now or at the moment given; later times change nothing."""
        if stage in self.reached_ms:
            return
        self.reached_ms[stage] = ((time.monotonic() if at is None else at) - self.began) * 1000
        if self._on_reached:
            self._on_reached(stage, self.reached_ms[stage])

    def between_ms(self, first: Stage, second: Stage) -> float | None:
        """How long it took from one stage to another; None where one was not reached."""
        if first not in self.reached_ms or second not in self.reached_ms:
            return None
        return self.reached_ms[second] - self.reached_ms[first]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What many calls say about one stage."""

    median: float
    p95: float
    worst: float
    lost: int
    """Calls that did not reach it."""


def spread(values: Sequence[float | None]) -> Spread | None:
    """Sum up one value per call, None for a call without it; None when no call has one."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    p95 = known[round(0.95 * (len(known) - 1))]
    return Spread(median=statistics.median(known), p95=p95, worst=known[-1], lost=len(values) - len(known))
