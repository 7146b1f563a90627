"""The pool against a fixed one, simulated: how long callers wait for an agent, and what the warm ones cost.

Usage: python -m tests.benchmarks.simulate   (make simulate) writes docs/pool.md and its plots

A discrete-event simulation with a seed. The rules are the product's own: demand.py sets the target, placement.py
gives each host its place, pool.py the bounds. What Redis does in Lua, the events do here. The time of a start is drawn
around START_SECONDS, a refill comes HOP_SECONDS after a caller who has to wait, then each ``refill_look`` while agents
are missing, and with each tick.
"""

import heapq
import itertools
import math
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from backend.common.limits import Limits
from backend.orchestrator import demand, placement, pool
from backend.orchestrator.demand import Demand
from backend.orchestrator.placement import Occupancy
from tests.benchmarks import documents

LIMITS = Limits()
START_SECONDS = 0.6
"""From the reserved slot to the warm agent, of forked agents that join a room of their own: 0.57 to 1.0 s measured,
with bursts among them."""
SCATTER = 0.35
"""Of a start's logarithm: one in twenty takes nearly twice as long."""
HOP_SECONDS = 0.03
"""From a caller who has to wait to the refill that follows: a Celery hop."""
CALL_SECONDS = 120.0
CAPACITY, CORES = 100, 4
"""So many slots that no host is ever full: a caller who waits for one to become free says nothing about the pool."""
SIZE, LARGEST = 3, 16
"""PREWARM_POOL_SIZE and PREWARM_POOL_MAX: their defaults."""
CALLERS_SEED, LENGTHS_SEED, STARTS_SEED = 7, 8, 11
"""Each has a generator of its own: else a policy that draws one start more would see other calls from then on."""
SECTION = "Simulated"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One caller; seconds."""

    came_at: float
    length: float


@dataclass(frozen=True, kw_only=True)
class World:
    """What is simulated: ``callers`` gives the times of their coming, in seconds, in order."""

    name: str
    callers: Callable[[random.Random], Iterator[float]]
    hosts: int = 1
    start_seconds: float = START_SECONDS
    size: int = SIZE
    """PREWARM_POOL_SIZE: the fixed pool, and the least of the one that follows the demand."""
    seconds: float

    def calls(self) -> Iterator[Call]:
        """Every call, the same for each policy."""
        draw, lengths = (random.Random(seed) for seed in (CALLERS_SEED, LENGTHS_SEED))  # noqa: S311  # guard nothing
        for at in self.callers(draw):
            yield Call(came_at=at, length=lengths.expovariate(1 / CALL_SECONDS))


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How large the pool of a host may be; a fixed one has one size."""

    name: str
    size: int
    largest: int


@dataclass
class Seen:
    """What one run showed; seconds."""

    waits: list[float] = field(default_factory=list)
    idle: float = 0.0
    """Agent-seconds of warm agents."""
    series: list[tuple[float, int, int, int]] = field(default_factory=list)
    """(when, target, warm, waiting), once a second."""


class Fleet:
    """The hosts, by what claims and refills look for: heaps, from whose tops what is not true any more is taken."""

    def __init__(self, hosts: int) -> None:
        self.hosts = [Occupancy(capacity=CAPACITY, cores=CORES) for _ in range(hosts)]
        self._offers: list[tuple[float, int]] = []
        self._places: list[tuple[float, int]] = []
        for number in range(hosts):
            self.change(number)

    def change(self, number: int, **by: int) -> None:
        """Add to a host's numbers, and give it its place anew."""
        host = self.hosts[number]
        host = replace(host, **{name: getattr(host, name) + more for name, more in by.items()})
        self.hosts[number] = host
        load, room = placement.load(host), placement.room(host)
        if load is not None:
            heapq.heappush(self._offers, (load, number))
        if room is not None:
            heapq.heappush(self._places, (-room, number))

    def least_loaded(self) -> int | None:
        """The host that gives the next agent; None when nobody is warm."""
        return _first(self._offers, lambda number: placement.load(self.hosts[number]))

    def roomiest(self) -> int | None:
        """The host that starts the next one; None when none may now."""
        return _first(self._places, lambda number: _minus(placement.room(self.hosts[number])))

    def most_loaded(self) -> int | None:
        """The host that lets one go. O(hosts): it is asked once a second at most."""
        loads = ((load, n) for n, host in enumerate(self.hosts) if (load := placement.load(host)) is not None)
        return max(loads, default=(0.0, None))[1]


def _minus(room: int | None) -> int | None:
    return None if room is None else -room


def _first(heap: list[tuple[float, int]], true_score: Callable[[int], float | None]) -> int | None:
    while heap and true_score(heap[0][1]) != heap[0][0]:
        heapq.heappop(heap)
    return heap[0][1] if heap else None


class Simulation:
    """One world under one policy."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.world, self.seen = world, Seen()
        self.starts = random.Random(STARTS_SEED)  # noqa: S311  # repeatable, guards nothing
        self.fleet, self.demand = Fleet(world.hosts), Demand()
        self.warm, self.starting, self.line = 0, 0, deque[Call]()
        capacity = CAPACITY * world.hosts
        self.least, self.most = pool.bounds(
            size=policy.size, largest=policy.largest, hosts=world.hosts, capacity=capacity
        )
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers, self._refill_at, self._last = itertools.count(), math.inf, 0.0

    def run(self) -> Seen:
        """Let the time pass."""
        calls = self.world.calls()
        self._at(0.0, self._tick)
        self._refill_soon(0.0)
        call = next(calls)
        while min(call.came_at, self._events[0][0]) < self.world.seconds:
            if call.came_at <= self._events[0][0]:
                self._pass_to(call.came_at)
                self._caller(call)
                call = next(calls)
            else:
                at, _, event = heapq.heappop(self._events)
                self._pass_to(at)
                event(at)
        return self.seen

    def _at(self, at: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), event))

    def _pass_to(self, at: float) -> None:
        self.seen.idle += self.warm * (at - self._last)
        self._last = at

    def _target(self, at: float) -> int:
        now = demand.faded(self.demand, _ms(at), LIMITS)
        return demand.target(now, LIMITS, least=self.least, most=self.most)

    def _caller(self, call: Call) -> None:
        self.demand = demand.came(self.demand, _ms(call.came_at), LIMITS)
        host = self.fleet.least_loaded()
        if host is None:
            self.line.append(call)
            self._refill_soon(call.came_at + HOP_SECONDS)
        else:
            self.warm -= 1
            self.fleet.change(host, warm=-1)
            self._talk(call, call.came_at, host)

    def _talk(self, call: Call, at: float, host: int) -> None:
        self.seen.waits.append(at - call.came_at)
        self._at(at + call.length, lambda _: self.fleet.change(host, slots=-1))

    def _refill_soon(self, at: float) -> None:
        if at < self._refill_at:
            self._refill_at = at
            self._at(at, self._refill)

    def _refill(self, at: float) -> None:
        if at != self._refill_at:
            return  # another one came before it
        self._refill_at = math.inf
        cores = CORES * self.world.hosts
        self.demand = replace(self.demand, cores=cores)
        missing = self._target(at) + len(self.line) - self.warm - self.starting
        while missing > 0 and (host := self.fleet.roomiest()) is not None:
            missing -= 1
            self.starting += 1
            self.fleet.change(host, slots=1, starting=1)
            seconds = self.world.start_seconds * self.starts.lognormvariate(0.0, SCATTER)
            self._at(at + seconds, partial(self._agent, host, seconds))
        if missing > 0:
            self._refill_soon(at + LIMITS.refill_look / 1000)

    def _agent(self, host: int, seconds: float, at: float) -> None:
        self.demand = demand.took(self.demand, seconds * 1000)
        self.starting -= 1
        if self.line:
            self.fleet.change(host, starting=-1)
            self._talk(self.line.popleft(), at, host)
        else:
            self.warm += 1
            self.fleet.change(host, starting=-1, warm=1)

    def _tick(self, at: float) -> None:
        wanted = self._target(at)
        self.seen.series.append((at, wanted, self.warm, len(self.line)))
        host = self.fleet.most_loaded() if self.warm > wanted else None
        if host is not None:
            self.warm -= 1
            self.fleet.change(host, warm=-1, slots=-1)
        self._refill_soon(at)
        self._at(at + 1.0, self._tick)


def _ms(at: float) -> float:
    return 1_000_000 + at * 1000


# -- how callers come


def poisson(rate: float, draw: random.Random) -> Iterator[float]:
    """So many a second, each for themselves."""
    at = 0.0
    while True:
        at += draw.expovariate(rate)
        yield at


def bursts(size: int, every: float, rate: float, draw: random.Random) -> Iterator[float]:
    """A trickle, and now and then so many within two seconds."""
    trickle, burst_at = poisson(rate, draw), every / 2
    following = next(trickle)
    while True:
        burst = sorted(burst_at + draw.uniform(0, 2) for _ in range(size))
        for at in burst:
            while following < at:
                yield following
                following = next(trickle)
            yield at
        burst_at += every * draw.uniform(0.6, 1.4)


def day(peak: float, length: float, draw: random.Random) -> Iterator[float]:
    """From nearly nobody to ``peak`` a second and back, once in ``length``; by thinning."""
    for at in poisson(peak, draw):
        if draw.random() < 0.02 + 0.98 * math.sin(math.pi * at / length) ** 4:
            yield at


WORLDS = (
    World(name="a steady stream, one in 5 s", callers=partial(poisson, 0.2), seconds=7_200),
    World(
        name="a steady stream, one in 3 s; starts of 3 s",
        callers=partial(poisson, 0.3),
        start_seconds=3.0,
        seconds=7_200,
    ),
    World(name="bursts of 20 in 2 s, 3 min or so apart", callers=partial(bursts, 20, 180.0, 0.03), seconds=7_200),
    World(
        name="a day, up to one in 3 s; starts of 3 s",
        callers=partial(day, 0.3, 43_200.0),
        start_seconds=3.0,
        seconds=43_200,
    ),
    # One a host: a thousand times three are more than these would ever use up.
    World(
        name="1,000 hosts, 500 a second; starts of 3 s",
        callers=partial(poisson, 500.0),
        start_seconds=3.0,
        hosts=1_000,
        size=1,
        seconds=300,
    ),
    World(
        name="1,000 hosts, bursts of 8,000 in 2 s",
        callers=partial(bursts, 8_000, 60.0, 50.0),
        hosts=1_000,
        size=1,
        seconds=180,
    ),
)


def policies(world: World) -> tuple[Policy, ...]:
    """The pool as it is between a fixed one of its least size and one of its largest."""
    return (
        Policy(name=f"fixed, {world.size} a host", size=world.size, largest=world.size),
        Policy(name="follows the demand", size=world.size, largest=LARGEST),
        Policy(name=f"fixed, {LARGEST} a host", size=LARGEST, largest=LARGEST),
    )


# -- what comes of it


def row(world: World, policy: Policy, seen: Seen) -> list[str]:
    """One line of the table."""
    waits = sorted(seen.waits)
    waited = sum(wait > 0 for wait in waits) / len(waits)
    p95, p99, worst = (waits[int((len(waits) - 1) * part)] * 1000 for part in (0.95, 0.99, 1))
    figures = [f"{len(waits):,}", f"{waited:.1%}", f"{p95:,.0f}", f"{p99:,.0f}", f"{worst:,.0f}"]
    return [world.name, policy.name, *figures, f"{seen.idle / len(waits):,.1f}", f"{seen.idle / world.seconds:,.1f}"]


def plot(name: str, world: World, runs: Sequence[tuple[Policy, Seen]], until: float) -> None:
    """Draw target and warm agents over the time, and who waited, for each policy but the last."""
    import matplotlib as mpl  # noqa: PLC0415  # slow, and only where plots are drawn

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, charts = pyplot.subplots(len(runs), 1, sharex=True, sharey=True, figsize=(8, 2.2 * len(runs)))
    for chart, (policy, seen) in zip(charts, runs, strict=True):
        at, target, warm, waiting = zip(*(point for point in seen.series if point[0] <= until), strict=True)
        minutes = [seconds / 60 for seconds in at]
        chart.plot(minutes, warm, label="warm", color="tab:blue", linewidth=0.8)
        chart.plot(minutes, target, label="target", color="black", linewidth=1.0)
        chart.plot(minutes, waiting, label="waiting", color="tab:red", linewidth=0.8)
        chart.set_title(f"{world.name}: {policy.name}", fontsize=9)
        chart.set_ylabel("agents, callers", fontsize=8)
    charts[0].legend(fontsize=8, loc="upper right")
    charts[-1].set_xlabel("minutes", fontsize=8)
    figure.tight_layout()
    figure.savefig(documents.DOCS / name, dpi=72)
    pyplot.close(figure)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # a command for people


def main() -> None:
    began, rows = time.monotonic(), []
    for number, world in enumerate(WORLDS, 1):
        runs = []
        for policy in policies(world):
            seen = Simulation(world, policy).run()
            runs.append((policy, seen))
            rows.append(row(world, policy, seen))
            say(f"{number} of {len(WORLDS)}, {time.monotonic() - began:.0f} s: {' | '.join(rows[-1])}")
        if world.name.startswith("bursts"):
            plot("pool-bursts.png", world, runs[:2], until=1_800)
        if world.name.startswith("a day"):
            plot("pool-day.png", world, runs[:2], until=world.seconds)
    head = [
        "callers",
        "pool",
        "calls",
        "waited",
        "p95 ms",
        "p99 ms",
        "worst ms",
        "idle agent-s a call",
        "warm on average",
    ]
    took = f"in {time.monotonic() - began:.0f} s on {documents.machine()}"
    when = f"{datetime.now(UTC):%Y-%m-%d}, {took}; seeds {CALLERS_SEED}, {LENGTHS_SEED} and {STARTS_SEED}"
    documents.write_section(
        "pool.md", SECTION, ["```", "make simulate", "```", "", when, "", *documents.table(head, rows)]
    )
    say("written: docs/pool.md, docs/pool-bursts.png, docs/pool-day.png")


if __name__ == "__main__":
    main()
