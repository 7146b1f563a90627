"""The fleet's metrics: read from Redis at each scrape, so that any API instance answers for the whole fleet.

Counters and histograms are fields of ``fleet:counts`` (common/numbers.py); the Lua operations count them where things
happen. Every label value is there from the start, as 0, so that a rate sees the first event too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from backend.common.contract import EndReason, Trouble, Word
from backend.common.numbers import HISTOGRAMS_MS, Fleet
from backend.orchestrator.commands import QueueState
from backend.orchestrator.errors import FullError, KeyReusedError, UnavailableError
from backend.orchestrator.fleet_size import HOST_SEEN_MS


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one scrape found out; None where Redis or the broker did not answer in time."""

    fleet: Fleet | None
    redis_seconds: float
    redis_memory_bytes: int
    queues: Mapping[str, QueueState] | None
    pool_target: int


@dataclass(frozen=True, kw_only=True)
class Counter:
    """A counter of the fleet; ``fields`` says for each of its label values which field of ``fleet:counts`` it is."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    fields: Mapping[tuple[str, ...], str]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """A histogram of the fleet, in seconds; ``names`` are those of numbers.py, by label value ('' without label)."""

    name: str
    meaning: str
    label: str = ""
    names: Mapping[str, str]


def _of(prefix: str, *values: str) -> dict[tuple[str, ...], str]:
    return {(value,): f"{prefix}:{value}" for value in values}


_CODES = {
    "fleet": FullError,
    "user": FullError,
    "line_age": FullError,
    "late": UnavailableError,
    "conflict": KeyReusedError,
}
_EVENTS = {
    "participant_joined": ("taken", "again", "unknown"),
    "participant_left": ("taken", "again", "unknown"),
    "room_finished": ("taken", "again", "unknown", "ended"),
}

COUNTERS = (
    Counter(
        name="greenroom_sessions_started",
        meaning="sessions admitted, by what they got at once",
        labels=("outcome",),
        fields=_of("started", "assigned", "waiting"),
    ),
    Counter(
        name="greenroom_starts_refused",
        meaning="starts that Redis refused, by what was full or late and by the error code of the answer",
        labels=("cause", "code"),
        fields={(cause, error.code): f"refused:{cause}" for cause, error in _CODES.items()},
    ),
    Counter(
        name="greenroom_claims",
        meaning="agents handed to sessions: a start took a warm one, an agent took the head of the line, or a failover",
        labels=("how",),
        fields=_of("claims", "warm", "line", "failover"),
    ),
    Counter(
        name="greenroom_sessions_ended",
        meaning="sessions ended, by end reason and whose doing it was",
        labels=("reason", "cause"),
        fields={(reason.value, reason.cause.value): f"ended:{reason.value}" for reason in EndReason},
    ),
    Counter(
        name="greenroom_failovers", meaning="sessions that lost their agent and arrived again", fields={(): "failovers"}
    ),
    Counter(
        name="greenroom_heartbeats",
        meaning="heartbeats taken, by their answer; stop and unknown are stale ones",
        labels=("answer",),
        fields=_of("heartbeats", *(word.value for word in Word)),
    ),
    Counter(
        name="greenroom_leases_lapsed",
        meaning="deadlines that passed: an agent's lease, a claim, a wait, a session's limit, a stop",
        labels=("kind",),
        fields=_of("lapsed", "agent", "claim", "waiting", "limit", "stop"),
    ),
    Counter(name="greenroom_spawns", meaning="agents ordered from hosts", fields={(): "spawns"}),
    Counter(
        name="greenroom_spawns_failed",
        meaning="ordered agents that never arrived: refused by the launcher, exited before, or too late",
        labels=("cause",),
        fields=_of("spawns_failed", "refused", "exited", "late"),
    ),
    Counter(
        name="greenroom_agents_exited",
        meaning="agents gone, by exit code: 0, above 0, a signal, or not known",
        labels=("result",),
        fields=_of("exited", "clean", "failed", "killed", "unknown"),
    ),
    Counter(
        name="greenroom_webhooks",
        meaning="LiveKit's webhooks about callers and rooms, by event and what became of it",
        labels=("event", "outcome"),
        fields={
            (event, outcome): f"webhooks:{event}:{outcome}"
            for event, outcomes in _EVENTS.items()
            for outcome in outcomes
        },
    ),
)

HISTOGRAMS = (
    Histogram(
        name="greenroom_wait_seconds",
        meaning="time in the waiting line, of sessions that waited for their first agent",
        names={"": "wait"},
    ),
    Histogram(
        name="greenroom_start_stage_seconds",
        meaning="from the session's creation to: agent confirmed in the room, caller joined, caller can hear the agent",
        label="stage",
        names={stage: stage for stage in ("confirmed", "caller_joined", "can_hear")},
    ),
    Histogram(
        name="greenroom_agent_stage_seconds",
        meaning="from the claim, as the agent heard it: room joined, pipeline built, vendors connected, first sound",
        label="stage",
        names={stage: f"agent_{stage}" for stage in ("joined", "built", "connected", "first_sound")},
    ),
    Histogram(
        name="greenroom_failover_silence_seconds",
        meaning="silence in a running call while its agent was replaced",
        names={"": "silence"},
    ),
    Histogram(
        name="greenroom_spawn_seconds",
        meaning="from the order to the agent's arrival",
        names={"": "spawn"},
    ),
    Histogram(
        name="greenroom_session_billed_seconds",
        meaning="billed time of ended sessions; the first bucket is those that nobody heard",
        names={"": "talk"},
    ),
)


def collect(look: Look) -> Iterator[Metric]:
    """Make the metrics of one scrape. What could not be read is absent: a 0 would be a lie."""
    up = GaugeMetricFamily("greenroom_up", "whether the component answered this scrape in time", labels=["component"])
    up.add_metric(["redis"], look.fleet is not None)
    up.add_metric(["broker"], look.queues is not None)
    yield up
    if look.fleet:
        yield from _gauges(look.fleet, look)
        yield from _hosts(look.fleet)
        yield from (_counter(counter, look.fleet.counts) for counter in COUNTERS)
        yield from (_histogram(histogram, look.fleet.counts) for histogram in HISTOGRAMS)
    if look.queues is not None:
        yield from _queues(look.queues)


def _gauges(fleet: Fleet, look: Look) -> Iterator[Metric]:
    hosts = [host for host in fleet.hosts if host.record and fleet.now_ms - host.seen_ms <= HOST_SEEN_MS]
    yield _by_label(
        "greenroom_sessions",
        "unended sessions",
        "state",
        {
            "waiting": fleet.waiting,
            "assigned": max(0, fleet.open - fleet.waiting - fleet.live),
            "live": fleet.live,
        },
    )
    # Every session that does not wait has exactly one agent.
    agents = {"starting": fleet.starting, "warm": fleet.warm, "busy": max(0, fleet.open - fleet.waiting)}
    yield _by_label("greenroom_agents", "agents; busy ones have a session", "state", agents)
    plain = {
        "pool_target": ("warm agents wanted", look.pool_target),
        "hosts": ("hosts heard in the last 10 s", len(hosts)),
        "capacity": (
            "agents that the hosts heard in the last 10 s may hold",
            sum(int(host.record.get("capacity") or 0) for host in hosts),
        ),
        "waiting_oldest_seconds": ("how long the head of the line has waited", fleet.age(fleet.oldest_waiting_ms)),
        "unsettled": ("ended sessions that are not accounted for", fleet.unsettled),
        "unsettled_oldest_seconds": (
            "how long ago the oldest session that is not accounted for ended",
            fleet.age(fleet.oldest_unsettled_ms),
        ),
        "redis_seconds": ("how long Redis took to answer this scrape", look.redis_seconds),
        "redis_memory_bytes": ("what Redis holds", look.redis_memory_bytes),
    }
    if fleet.swept_ms:
        plain["sweep_age_seconds"] = ("since the last sweep; they come every second", fleet.age(fleet.swept_ms))
    for name, (meaning, value) in plain.items():
        yield GaugeMetricFamily(f"greenroom_{name}", meaning, value)


def _hosts(fleet: Fleet) -> Iterator[Metric]:
    seen = GaugeMetricFamily("greenroom_host_seen_seconds", "since the host's launcher was last heard", labels=["host"])
    capacity = GaugeMetricFamily("greenroom_host_capacity", "agents that the host may hold", labels=["host"])
    slots = GaugeMetricFamily("greenroom_host_agents", "agents of the host, in any state", labels=["host"])
    memory = GaugeMetricFamily(
        "greenroom_host_memory_bytes",
        "memory of the host's launcher and agents, shared pages by their share (PSS)",
        labels=["host", "state"],
    )
    measured = GaugeMetricFamily(
        "greenroom_host_measured", "processes in greenroom_host_memory_bytes", labels=["host", "state"]
    )
    trouble = GaugeMetricFamily(
        "greenroom_host_trouble", "1 while the host starts no or few agents, for this cause", labels=["host", "cause"]
    )
    for host in fleet.hosts:
        for cause in Trouble if host.record else ():
            trouble.add_metric([host.id, cause], host.record.get("trouble") == cause)
        seen.add_metric([host.id], fleet.age(host.seen_ms))
        slots.add_metric([host.id], host.slots)
        if host.record:
            capacity.add_metric([host.id], int(host.record.get("capacity") or 0))
        for state in ("warm", "busy", "launcher"):
            if f"{state}_measured" in host.record:
                memory.add_metric([host.id, state], int(host.record[f"{state}_memory_bytes"]))
                measured.add_metric([host.id, state], int(host.record[f"{state}_measured"]))
    yield from (seen, capacity, slots, memory, measured, trouble)


def _queues(queues: Mapping[str, QueueState]) -> Iterator[Metric]:
    length = GaugeMetricFamily("greenroom_queue_length", "commands that lie in the queue", labels=["queue"])
    oldest = GaugeMetricFamily(
        "greenroom_queue_oldest_seconds", "how long ago the oldest command of the queue was sent", labels=["queue"]
    )
    for name, state in queues.items():
        length.add_metric([name], state.length)
        oldest.add_metric([name], state.oldest_seconds)
    yield from (length, oldest)


def _by_label(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _counter(counter: Counter, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(counter.name, counter.meaning, labels=counter.labels)
    for values, field in counter.fields.items():
        family.add_metric(values, counts.get(field, 0))
    return family


def _histogram(histogram: Histogram, counts: Mapping[str, int]) -> Metric:
    labels = [histogram.label] if histogram.label else []
    family = HistogramMetricFamily(histogram.name, histogram.meaning, labels=labels)
    for value, name in histogram.names.items():
        total, buckets = 0, []
        for bound_ms in HISTOGRAMS_MS[name]:
            total += counts.get(f"{name}:{bound_ms}", 0)
            buckets.append((str(bound_ms / 1000), total))
        buckets.append(("+Inf", total + counts.get(f"{name}:inf", 0)))
        family.add_metric([value] if labels else [], buckets, counts.get(f"{name}:sum", 0) / 1000)
    return family
