"""What crosses a process border: names, states, reasons, commands and the replies of the exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

AGENT_IDENTITY = "agent"
"""The agent's identity in every room: a successor's join drops the ghost of a dead one."""


class SessionState(StrEnum):
    """Where a session stands; a failover goes back to waiting or assigned."""

    WAITING = "waiting"
    ASSIGNED = "assigned"
    LIVE = "live"
    ENDED = "ended"


class AgentState(StrEnum):
    """Where an agent stands, as Redis knows it."""

    STARTING = "starting"
    WARM = "warm"
    CLAIMED = "claimed"
    BUSY = "busy"
    STOPPING = "stopping"
    GONE = "gone"


class Trouble(StrEnum):
    """Why a host starts no agents, or only one now and then."""

    MEMORY = "memory"
    CRASHES = "crashes"


class Cause(StrEnum):
    """Whose doing an end was: the field ``endedBy``."""

    CALLER = "caller"
    CLIENT = "client"
    AGENT = "agent"
    LIMIT = "limit"
    PLATFORM = "platform"


class EndReason(StrEnum):
    """Why a session ended."""

    CALLER_LEFT = "caller_left"
    NOBODY_CAME = "nobody_came"
    SILENCE = "silence"
    CLIENT_END = "client_end"
    GOODBYE = "goodbye"
    TIME_LIMIT = "time_limit"
    START_TIMEOUT = "start_timeout"
    AGENT_LOST = "agent_lost"
    VENDOR_FAILED = "vendor_failed"
    ROOM_LOST = "room_lost"
    AGENT_FAULT = "agent_fault"
    SHUTDOWN = "shutdown"

    @property
    def cause(self) -> Cause:
        """Whose doing it was."""
        return _CAUSES.get(self, Cause.PLATFORM)


_CAUSES = {
    EndReason.CALLER_LEFT: Cause.CALLER,
    EndReason.NOBODY_CAME: Cause.CALLER,
    EndReason.SILENCE: Cause.CALLER,
    EndReason.CLIENT_END: Cause.CLIENT,
    EndReason.GOODBYE: Cause.AGENT,
    EndReason.TIME_LIMIT: Cause.LIMIT,
}


class Outcome(StrEnum):
    """What became of a start."""

    NEW = "new"
    AGAIN = "again"
    CONFLICT = "conflict"
    REFUSED = "refused"


class Word(StrEnum):
    """The answer to a heartbeat (see heartbeat.lua)."""

    KEEP = "keep"
    ASSIGNED = "assigned"
    STOP = "stop"
    UNKNOWN = "unknown"


class Order(StrEnum):
    """A command in an agent's inbox."""

    ASSIGN = "assign"
    END = "end"
    SAY = "say"
    PROMPT = "prompt"


@dataclass(frozen=True, kw_only=True)
class Agent:
    """Names one process for ever: an id alone could come back."""

    id: str
    nonce: str
    host_id: str
    pid: int = 0


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A session at one generation; only the agent that holds it may act for it."""

    session_id: str
    generation: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """What ``session_arrives`` needs to admit a session."""

    proposed_id: str
    """The session's id, unless a warm agent brings its own room."""
    user_id: str
    """Whose sessions are counted: scope and user."""
    room_token: str = ""
    """For an agent to join room ``proposed_id`` with; a failover inherits it."""
    longest_ms: int
    fleet_ceiling: int
    """Most unended sessions: capacity of the live hosts plus the allowed line."""
    user_ceiling: int
    start_key: str = ""
    """Scope and idempotency key; '' when the start cannot be repeated."""
    body_hash: str = ""
    not_after_ms: int | None = None
    """Redis' clock; later than this the start was already answered with 503."""
    record: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Further fields of ``session:{id}``, opaque to Lua."""
    prompt: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """system_prompt and opening_line: kept apart and deleted at the end."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """What became of a start; ``full`` names what refused it: fleet, user, line_age, or late."""

    outcome: Outcome
    session_id: str = ""
    state: str = ""
    agent_id: str = ""
    full: str = ""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a heartbeat carries; counted since the call began."""

    frames: int = 0
    """Frames that passed the pipeline: a stuck one stops counting."""
    usage: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """speech_ms, characters, prompt_tokens, completion_tokens."""
    stages: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Stages of the start that were reached since the last heartbeat, ms from the claim."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to a heartbeat; ``left_ms`` until the session's deadline, None before it began."""

    word: Word
    assignment: Assignment | None = None
    left_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """The figures of an ended session, the same in every answer; times in ms of Redis' clock."""

    is_first: bool
    started_at_ms: int | None
    ended_at_ms: int
    silent_ms: int
    agent_id: str = ""

    @property
    def billed_ms(self) -> int:
        """Zero when the caller never heard an agent, or Redis' clock went back."""
        if self.started_at_ms is None:
            return 0
        return max(0, self.ended_at_ms - self.started_at_ms - self.silent_ms)


@dataclass(frozen=True, kw_only=True)
class Exit:
    """What an exit report did; ``state`` is that of the session it left, or empty."""

    is_first: bool
    session_id: str = ""
    state: str = ""
    generation: int = 0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """``handled`` deadlines had passed; ``kill`` are the agents whose host must end them."""

    handled: int
    kill: tuple[Agent, ...]


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """``agents`` shall be started on their hosts; so many more are ``missing``, and no host has room for them now.

    ``starting`` are all that are reserved and not there yet: when one of them is, its host has room for the next.
    """

    missing: int
    starting: int
    agents: tuple[Agent, ...]
    """Without a nonce: no process has these ids yet."""

    @property
    def goes_on(self) -> bool:
        """Whether a refill a moment later may reserve more."""
        return bool(self.missing and self.starting)


REMEMBERED = (
    "user_id",
    "user",
    "user_name",
    "voice_id",
    "caller_identity",
    "owner",
    "metadata",
    "ticket",
    "created_at_ms",
    "started_at_ms",
    "longest_ms",
    "silent_ms",
    "room_token",
    "start_key",
    "start_body",
    "traceparent",
)
"""Fields of ``session:{id}`` that an agent keeps, to give them back to a Redis that forgot."""


class Ask(StrEnum):
    """A command on the launcher's socket: one JSON object per line, answered by one."""

    SPAWN = "spawn"
    KILL = "kill"
    STATUS = "status"
