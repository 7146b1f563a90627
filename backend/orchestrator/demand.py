"""How many agents should be warm: a target that follows how many callers come, and how long a start takes.

An agent that is claimed is replaced by one that arrives a *refill* later: the time of a start, and the moment until
a refill looks. Two things make a caller wait for that, and the target is the larger answer to them.

**A steady stream.** Callers come as they like, ``rate`` of them a second: a Poisson process. Each claim begins one
refill, so the refills under way are the callers in the queue M/G/infinity, and by Palm's theorem their number is
Poisson distributed with the mean ``rate * refill``, however refill times scatter. Of N agents that many are missing,
and a caller sees the same distribution (arrivals see time averages), so one in

    P(caller waits) = P(Poisson(rate * refill) >= N)

waits. ``for_rate`` is the least N with which that is at most WAITING.

**A burst.** Callers who come together are not independent, and the fleet starts only as many agents at a time as it has
``cores``. So what is to be replaced is followed as it happens, in the mean: each caller adds one, and it falls by
``min(replacing, cores)`` a refill, the fluid of a queue with so many servers. Nobody would have waited with as many
warm agents as there ever were to replace. That peak is remembered, and halves in ``peak_half_life``: bursts come in
waves, and an hour later nobody pays.

Redis keeps the five figures (``pool:demand``): lua/_traffic.lua is ``came`` and ``took`` in O(1), by its own clock.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from backend.common.limits import Limits

WAITING = 0.01
"""The share of callers in a steady stream who may have to wait."""
NOBODY = 0.5
"""Fewer callers than this in the count are none: a minute after a single one."""
LARGE_MEAN, QUANTILE = 500.0, 2.33
"""From this mean on, e^-mean is no number to count with, and Poisson's quantile is the normal one: 99 % for WAITING."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is known of the callers of late, as of ``at_ms`` by Redis' clock."""

    at_ms: float = 0.0
    arrivals: float = 0.0
    """Callers, each of whom counts half after ``rate_half_life``."""
    replacing: float = 0.0
    """Agents claimed and not replaced yet, in the mean."""
    peak: float = 0.0
    """The most of them; halves in ``peak_half_life``."""
    cores: float = 1.0
    """How many agents the fleet starts at a time; what refills said last."""
    start_ms: float | None = None
    """From the reserved slot to the agent's arrival, of the last eight or so; None before the first."""

    def refill_ms(self, limits: Limits) -> float:
        """From a claim to the next agent's arrival."""
        return (limits.start_unknown if self.start_ms is None else self.start_ms) + limits.refill_look


def read(record: Mapping[str, str]) -> Demand:
    """Read ``pool:demand``; what it lacks is not known yet."""
    known = {field.name for field in fields(Demand)}
    return Demand(**{name: float(value) for name, value in record.items() if name in known})


def came(demand: Demand, now_ms: float, limits: Limits) -> Demand:
    """One more caller."""
    now = faded(demand, now_ms, limits)
    replacing = now.replacing + 1
    return replace(now, arrivals=now.arrivals + 1, replacing=replacing, peak=max(now.peak, replacing))


def took(demand: Demand, start_ms: float) -> Demand:
    """One more agent arrived, so long after its slot was reserved."""
    known_ms = start_ms if demand.start_ms is None else demand.start_ms
    return replace(demand, start_ms=known_ms + (start_ms - known_ms) / 8)


def faded(demand: Demand, now_ms: float, limits: Limits) -> Demand:
    """What is left of it now. A clock that was set back forgets nothing."""
    passed_ms = max(0.0, now_ms - demand.at_ms) if demand.at_ms else 0.0
    return replace(
        demand,
        at_ms=now_ms,
        arrivals=demand.arrivals * 0.5 ** (passed_ms / limits.rate_half_life),
        replacing=still_replacing(demand.replacing, passed_ms, demand.cores, demand.refill_ms(limits)),
        peak=demand.peak * 0.5 ** (passed_ms / limits.peak_half_life),
    )


def still_replacing(number: float, passed_ms: float, cores: float, refill_ms: float) -> float:
    """How many of so many agents are still to be replaced after some time: as many at a time as there are cores."""
    all_started_after_ms = max(0.0, number - cores) * refill_ms / cores
    if passed_ms < all_started_after_ms:
        return number - passed_ms * cores / refill_ms
    return min(number, cores) * math.exp((all_started_after_ms - passed_ms) / refill_ms)


def target(demand: Demand, limits: Limits, *, least: int, most: int) -> int:
    """Warm agents wanted, between ``least`` and ``most`` (``least`` wins); ``demand`` is faded to now."""
    # A stream of r a second has r * half-life / ln 2 such callers in the count.
    rate = demand.arrivals * math.log(2) * 1000 / limits.rate_half_life if demand.arrivals >= NOBODY else 0.0
    steady = for_rate(rate * demand.refill_ms(limits) / 1000, most)
    # Rounded, or the last thousandth of a caller would keep an agent for an hour.
    return max(least, min(most, max(steady, math.floor(demand.peak + 0.5))))


def for_rate(mean: float, most: int) -> int:
    """Return the least N, up to ``most``, with P(Poisson(mean) >= N) <= WAITING; 0 when nobody comes."""
    if mean > LARGE_MEAN:
        return min(most, math.ceil(mean + QUANTILE * math.sqrt(mean)))
    number, fewer, term = 0, 0.0, math.exp(-mean)  # fewer: P(Poisson(mean) < number); term: P(... = number)
    while mean > 0 and number < most and 1 - fewer > WAITING:
        number, fewer, term = number + 1, fewer + term, term * mean / (number + 1)
    return number
