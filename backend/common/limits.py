"""The times and counts that the Lua operations apply, as constants in front of each script."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Times and counts that the operations apply; times in milliseconds. They fit each other: change them together."""

    lease: int = 6_000
    """An agent's lease: three heartbeats of 2 s. Longer than ``sweep_gap`` + one heartbeat."""
    confirm: int = 15_000
    """From the claim to the agent being in the room. A burst on a small machine is slow; exits are seen sooner."""
    spawn: int = 20_000
    """From the reserved slot to the agent's arrival."""
    stop: int = 10_000
    """From 'end' to the exit report; longer than goodbye + kill ladder."""
    start: int = 30_000
    """How long a session may wait: BOT_STARTUP_TIMEOUT."""
    line_age: int = 25_000
    """With a head of the line older than this, new sessions are refused: they would time out."""
    limit_margin: int = 5_000
    """Redis' own limit comes later than the agent's, which says goodbye first."""
    sweep_gap: int = 3_000
    """Sweeps further apart than this prove nothing about leases. Sweeps come every second."""
    failovers: int = 3
    """Lost agents within ``failover_window`` that a session survives."""
    failover_window: int = 60_000
    host_seen: int = 10_000
    """A host whose launcher was not heard for five reports has no capacity."""
    host_ttl: int = 15_000
    """TTL of a host's record, renewed by each report."""
    refill_look: int = 100
    """Until a refill looks again while agents are missing."""
    call_begins: int = 1_000
    """How long a single missing agent is not replaced after a caller came, while more than half of the pool is warm."""
    start_unknown: int = 1_000
    """What a start is taken to last before any was seen: longer than a fork, shorter than a fresh interpreter."""
    rate_half_life: int = 60_000
    """How soon the rate of arrivals forgets: long enough for a steady figure, and a call lasts longer."""
    peak_half_life: int = 300_000
    """How soon the most that was needed at once is forgotten: bursts come in waves of minutes."""
    demand_ttl: int = 3_600_000
    """TTL of what is known of the demand, renewed by refills; after an hour nothing of a rate or a peak is left."""
    warm_least: int = 30_000
    """How long an agent stays warm at least before it is let go."""
    record_ttl: int = 24 * 3_600_000
    """TTL of agents' records and inboxes, renewed by heartbeats; a net, the leases do the work."""
    unsettled_ttl: int = 7 * 24 * 3_600_000
    """TTL of an ended session until it is settled: how long settling may fail without a loss."""
    settled_ttl: int = 7 * 24 * 3_600_000
    """TTL of a settled session: how long its record and its start key answer."""
    tombstone_ttl: int = 600_000
    """TTL of what only late duplicates ask for; longer than any command's ``expires``."""
    event_ttl: int = 3_600_000
    """TTL of a taken webhook's mark; longer than its signature is valid."""

    @classmethod
    def waiting_at_most(cls, seconds: int) -> "Limits":
        """The limits of a deployment whose sessions wait at most ``seconds``; the line closes after 5/6 of that."""
        return cls(start=seconds * 1_000, line_age=seconds * 5_000 // 6)
