"""Every Redis key: its name, type, meaning and life, in one table.

Lua builds the same names (lua/_names.lua); a test holds the two together. ``{id}`` of the
two ``agent:{id}:...`` keys marked so is the *session's* id: the names are older than agents.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Key:
    """One row of the table; ``ttl`` says when the key goes, or why it stays."""

    pattern: str
    type: str
    meaning: str
    ttl: str
    stays: bool = False
    """True when it has no TTL."""


TABLE = (
    Key(
        pattern="session:{id}",
        type="hash",
        meaning="the session's record",
        ttl="longest + 7 days; 7 days after its end",
    ),
    Key(
        pattern="session:{id}:prompt",
        type="hash",
        meaning="system prompt, opening line",
        ttl="as session; deleted at its end",
    ),
    Key(
        pattern="session:{id}:turns",
        type="list",
        meaning="the conversation, last 200 turns",
        ttl="as session; deleted at its end",
    ),
    Key(pattern="session:{id}:callers", type="hash", meaning="participant SID -> joined or left", ttl="1 day"),
    Key(
        pattern="agent:{id}",
        type="hash",
        meaning="the agent's record",
        ttl="24 hours, renewed by heartbeats; gone: 10 minutes",
    ),
    Key(
        pattern="agent:{id}:inbox",
        type="stream",
        meaning="commands to the agent, last 100",
        ttl="24 hours, renewed; deleted at its exit",
    ),
    Key(
        pattern="agent:{id}:pid",
        type="string",
        meaning="pid of the session's agent ({id}: session)",
        ttl="24 hours, renewed; deleted at the end",
    ),
    Key(pattern="agent:{id}:logs", type="list", meaning="last 100 log lines ({id}: session)", ttl="7 days"),
    Key(pattern="user:{name}:config", type="hash", meaning="defaults for the user's next call", ttl="90 days"),
    Key(
        pattern="user:{id}:sessions",
        type="set",
        meaning="the user's unended sessions",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(pattern="start:{scope}:{key}", type="hash", meaning="idempotency: body hash, session id", ttl="as its session"),
    Key(
        pattern="host:{id}",
        type="hash",
        meaning="capacity, boot id, nonce, counts, memory, seen",
        ttl="15 seconds, renewed by the launcher",
    ),
    Key(
        pattern="host:{id}:agents",
        type="set",
        meaning="slots: the host's agents of any state",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(
        pattern="host:{id}:starting",
        type="set",
        meaning="the host's agents that have not arrived",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(
        pattern="host:{id}:warm",
        type="zset",
        meaning="the host's warm agents by when they became so: the newest is claimed",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(
        pattern="hosts",
        type="zset",
        meaning="hosts by when they were last seen",
        ttl="none: prune empties it",
        stays=True,
    ),
    Key(
        pattern="pool:ready",
        type="zset",
        meaning="warm agents by last heartbeat",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(
        pattern="pool:starting",
        type="set",
        meaning="agents reserved or forked, not arrived",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(
        pattern="pool:offers",
        type="zset",
        meaning="hosts with warm agents by load: the least is claimed from",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(
        pattern="pool:places",
        type="zset",
        meaning="hosts that may start an agent now by free slots: the most starts",
        ttl="none: refills drop the hosts that are gone",
        stays=True,
    ),
    Key(pattern="pool:refilling", type="string", meaning="a refill goes on while agents start", ttl="0.9 s"),
    Key(
        pattern="pool:demand",
        type="hash",
        meaning="rate of arrivals, most to replace at once of late, how long a start takes",
        ttl="1 hour, renewed by refills",
    ),
    Key(pattern="session:waiting", type="zset", meaning="the line, by ticket", ttl="none: empties itself", stays=True),
    Key(
        pattern="session:open",
        type="zset",
        meaning="unended sessions by creation",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(
        pattern="session:live",
        type="set",
        meaning="open sessions whose caller hears an agent",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(
        pattern="session:all",
        type="zset",
        meaning="sessions of the last 7 days by creation",
        ttl="none: prune empties it",
        stays=True,
    ),
    Key(
        pattern="session:ended",
        type="zset",
        meaning="ended sessions of the last 7 days by their end",
        ttl="none: prune empties it",
        stays=True,
    ),
    Key(
        pattern="deadlines",
        type="zset",
        meaning="kind:id -> ms: all that can expire",
        ttl="none: empties itself",
        stays=True,
    ),
    Key(
        pattern="settle:due",
        type="zset",
        meaning="ended, not yet settled: the outbox",
        ttl="none: settle empties it",
        stays=True,
    ),
    Key(
        pattern="sweep",
        type="hash",
        meaning="when the last sweep was, and the first that this Redis remembers",
        ttl="none: one record",
        stays=True,
    ),
    Key(
        pattern="fleet:counts",
        type="hash",
        meaning="what was counted, for /metrics",
        ttl="none: one record of few fields",
        stays=True,
    ),
    Key(pattern="livekit:event:{id}", type="string", meaning="a webhook that was taken", ttl="1 hour"),
    Key(pattern="rate:{limit}", type="string", meaning="calls of an API key or address in a window", ttl="two windows"),
)

HOSTS = "hosts"
POOL_READY = "pool:ready"
POOL_STARTING = "pool:starting"
POOL_OFFERS = "pool:offers"
POOL_PLACES = "pool:places"
POOL_DEMAND = "pool:demand"
POOL_REFILLING = "pool:refilling"
SESSION_WAITING = "session:waiting"
SESSION_OPEN = "session:open"
SESSION_LIVE = "session:live"
SESSION_ALL = "session:all"
SESSION_ENDED = "session:ended"
DEADLINES = "deadlines"
SETTLE_DUE = "settle:due"
SWEEP = "sweep"
FLEET_COUNTS = "fleet:counts"


def session(session_id: str) -> str:
    """The session's record."""
    return f"session:{session_id}"


def session_prompt(session_id: str) -> str:
    """Its prompt and opening line."""
    return f"session:{session_id}:prompt"


def session_turns(session_id: str) -> str:
    """Its conversation."""
    return f"session:{session_id}:turns"


def session_callers(session_id: str) -> str:
    """Who joined and left its room."""
    return f"session:{session_id}:callers"


def agent(agent_id: str) -> str:
    """The agent's record."""
    return f"agent:{agent_id}"


def agent_inbox(agent_id: str) -> str:
    """Commands to the agent."""
    return f"agent:{agent_id}:inbox"


def session_pid(session_id: str) -> str:
    """The pid of the session's agent."""
    return f"agent:{session_id}:pid"


def session_logs(session_id: str) -> str:
    """The session's last log lines."""
    return f"agent:{session_id}:logs"


def user_config(user_id: str) -> str:
    """Defaults for the user's next call."""
    return f"user:{user_id}:config"


def user_sessions(user_id: str) -> str:
    """The user's unended sessions."""
    return f"user:{user_id}:sessions"


def start(start_key: str) -> str:
    """The idempotency record of ``scope:key``."""
    return f"start:{start_key}"


def host(host_id: str) -> str:
    """What the host's launcher says of it."""
    return f"host:{host_id}"


def host_agents(host_id: str) -> str:
    """The host's taken slots."""
    return f"host:{host_id}:agents"


def host_starting(host_id: str) -> str:
    """The host's agents that have not arrived."""
    return f"host:{host_id}:starting"


def host_warm(host_id: str) -> str:
    """The host's warm agents."""
    return f"host:{host_id}:warm"


def livekit_event(event_id: str) -> str:
    """Marks a webhook as taken."""
    return f"livekit:event:{event_id}"


def rate(limit: str) -> str:
    """Counts towards a rate limit; the library names it."""
    return f"rate:{limit}"
