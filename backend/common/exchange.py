"""The Lua operations as typed functions: the only place that knows KEYS and ARGV.

A function here only *describes* a call; ``Exchange.run`` and ``run_sync`` are the two ways to
make it. So the asynchronous orchestrator and the single-threaded launcher share every twin.
Clients are made with ``decode_responses=True``.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from backend.common import keys, numbers
from backend.common.contract import (
    Agent,
    Arrival,
    Assignment,
    End,
    EndReason,
    Exit,
    Outcome,
    Progress,
    Start,
    Sweep,
    Verdict,
    Word,
)
from backend.common.limits import Limits
from backend.common.numbers import Fleet

LUA = Path(__file__).parent / "lua"
Reply = TypeVar("Reply")


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Reply]):
    """One call of one Lua file, not yet made."""

    operation: str
    keys: tuple[str, ...]
    arguments: tuple[str | int, ...]
    read: Callable[[Any], Reply]
    """Turns what Redis answers into the value for the caller."""


class Exchange:
    """The scripts, ready to run with these limits; key names start with ``prefix``.

    Scripts go by their digest, so old and new versions of a program can share one Redis.
    """

    def __init__(self, *, limits: Limits | None = None, prefix: str = "") -> None:
        self.prefix = prefix
        values = ", ".join(f"{name} = {value}" for name, value in asdict(limits or Limits()).items())
        given = f"local LIMITS, BOUNDS, PREFIX = {{{values}}}, {numbers.as_lua()}, '{prefix}'"
        before = [given, *map(Path.read_text, sorted(LUA.glob("_*.lua")))]
        names = [path.stem for path in LUA.glob("*.lua") if not path.stem.startswith("_")]
        self.scripts = {name: "\n".join([*before, (LUA / f"{name}.lua").read_text()]) for name in names}
        self.digests = {
            name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in self.scripts.items()
        }

    async def run(self, client: redis.asyncio.Redis, call: Call[Reply]) -> Reply:
        """Make the call; loads the script where Redis does not have it (it may have restarted)."""
        names = [self.prefix + key for key in call.keys]
        arguments = [*names, *call.arguments]
        try:
            reply = await client.evalsha(self.digests[call.operation], len(names), *arguments)
        except NoScriptError:
            reply = await client.eval(self.scripts[call.operation], len(names), *arguments)
        return call.read(reply)

    def run_sync(self, client: redis.Redis, call: Call[Reply]) -> Reply:
        """Make the call from a program without an event loop."""
        names = [self.prefix + key for key in call.keys]
        arguments = [*names, *call.arguments]
        try:
            reply: Any = client.evalsha(self.digests[call.operation], len(names), *arguments)
        except NoScriptError:
            reply = client.eval(self.scripts[call.operation], len(names), *arguments)
        return call.read(reply)


def session_arrives(start: Start) -> Call[Arrival]:
    """Admit a session; give it a warm agent or a place in the line.

    After ``start.not_after_ms`` (Redis' clock) nothing is done: the caller was told 503 by then.
    """
    names = [keys.session(start.proposed_id)] + ([keys.start(start.start_key)] if start.start_key else [])
    record, prompt = _pairs(start.record), _pairs(start.prompt)
    arguments: tuple[str | int, ...] = (
        start.proposed_id,
        start.user_id,
        start.room_token,
        start.fleet_ceiling,
        start.user_ceiling,
        start.longest_ms,
        start.body_hash,
        "" if start.not_after_ms is None else start.not_after_ms,
        len(record),
        *record,
        *prompt,
    )
    return Call(operation="session_arrives", keys=tuple(names), arguments=arguments, read=_arrival)


def agent_arrives(
    agent: Agent, *, room: str = "", room_token: str = "", room_for_ms: int | None = None
) -> Call[Assignment | str]:
    """Offer an agent: an assignment, or ``"warm"``, or ``"stale"`` (it must exit)."""
    room_for = "" if room_for_ms is None else room_for_ms
    return Call(
        operation="agent_arrives",
        keys=(keys.agent(agent.id),),
        arguments=(agent.id, agent.nonce, agent.host_id, room, room_token, room_for, agent.pid),
        read=lambda reply: _assignment(reply) if reply[0] == Word.ASSIGNED else reply[0],
    )


def confirm_claim(agent: Agent, assignment: Assignment) -> Call[bool]:
    """Ask for leave to speak. Only after True may the agent publish."""
    arguments = (agent.id, agent.nonce, assignment.session_id, assignment.generation)
    return Call(operation="confirm_claim", keys=(keys.agent(agent.id),), arguments=arguments, read=bool)


def begin_session(agent: Agent, assignment: Assignment) -> Call[tuple[int, int] | None]:
    """Start billed time once: (started_at_ms, ms left until the deadline); None if the agent is stale."""
    return Call(
        operation="begin_session",
        keys=(keys.session(assignment.session_id),),
        arguments=(assignment.session_id, agent.id, assignment.generation),
        read=lambda reply: (reply[1], reply[2]) if reply else None,
    )


def heartbeat(agent: Agent, assignment: Assignment | None, progress: Progress | None = None) -> Call[Verdict]:
    """Renew the agent's lease and learn what Redis holds to be true of it."""
    work = (assignment.session_id, str(assignment.generation)) if assignment else ("", "")
    done = progress or Progress()
    return Call(
        operation="heartbeat",
        keys=(keys.agent(agent.id),),
        arguments=(agent.id, agent.nonce, *work, done.frames, json.dumps(dict(done.usage))),
        read=_verdict,
    )


def agent_returns(agent: Agent, assignment: Assignment, *, remembered: Mapping[str, str]) -> Call[bool]:
    """Tell a Redis that forgot about a running call; False: the agent must exit."""
    work = (assignment.session_id, str(assignment.generation))
    known = _pairs({name: value for name, value in remembered.items() if value != ""})
    return Call(
        operation="agent_returns",
        keys=(keys.agent(agent.id), keys.session(assignment.session_id)),
        arguments=(agent.id, agent.nonce, agent.host_id, *work, agent.pid, *known),
        read=bool,
    )


def agent_exited(agent: Agent, *, exit_code: int | None, end_reason: EndReason | None = None) -> Call[Exit]:
    """Report a dead process once; its session arrives again, or ends if the agent said so itself.

    ``exit_code`` is negative for a signal, None when nobody could wait for the process.
    """
    said = (end_reason, end_reason.cause) if end_reason else ("", "")
    code = "" if exit_code is None else exit_code
    return Call(
        operation="agent_exited",
        keys=(keys.agent(agent.id),),
        arguments=(agent.id, agent.nonce, code, *said),
        read=_exit,
    )


def end_session(session_id: str, reason: EndReason, *, generation: int | None = None) -> Call[End | None]:
    """End a session exactly once; None when it is unknown or the asking agent is stale."""
    return Call(
        operation="end_session",
        keys=(keys.session(session_id),),
        arguments=(session_id, reason, reason.cause, "" if generation is None else generation),
        read=_end,
    )


def expire_leases(*, most: int = 25) -> Call[Sweep]:
    """Act on at most ``most`` deadlines that have passed. More than 25 failovers at once hold up claims."""
    return Call(operation="expire_leases", keys=(keys.SWEEP,), arguments=(most,), read=_sweep)


def reserve_spawns(host_id: str, *, capacity: int, target: int, most: int, base: str) -> Call[tuple[str, ...]]:
    """Take slots for the agents that this host shall start now; returns their ids, ``base`` and a number."""
    return Call(
        operation="reserve_spawns",
        keys=(keys.host_agents(host_id),),
        arguments=(host_id, capacity, target, most, base),
        read=tuple,
    )


def session_settled(session_id: str) -> Call[bool]:
    """Take an ended session off the outbox, once it is accounted for."""
    return Call(operation="session_settled", keys=(keys.session(session_id),), arguments=(session_id,), read=bool)


def livekit_event(event_id: str, *, session_id: str, event: str, room_sid: str, participant_sid: str = "") -> Call[str]:
    """Take one webhook once: ``again``, ``unknown`` (no such session), ``ended`` (it ended one) or ``taken``."""
    return Call(
        operation="livekit_event",
        keys=(keys.livekit_event(event_id), keys.session(session_id)),
        arguments=(session_id, event, participant_sid, room_sid),
        read=str,
    )


def read_fleet() -> Call[Fleet]:
    """Read what /metrics shows of the fleet, all of one moment. Changes nothing."""
    return Call(operation="read_fleet", keys=(keys.HOSTS, keys.SWEEP), arguments=(), read=Fleet.read)


def _pairs(fields: Mapping[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]


def _arrival(reply: Any) -> Arrival:
    outcome, *rest = reply
    if outcome == Outcome.REFUSED:
        return Arrival(outcome=Outcome.REFUSED, full=rest[0])
    if outcome == Outcome.CONFLICT:
        return Arrival(outcome=Outcome.CONFLICT)
    return Arrival(outcome=Outcome(outcome), session_id=rest[0], state=rest[1], agent_id=rest[2])


def _assignment(reply: Any) -> Assignment:
    return Assignment(session_id=reply[1], generation=reply[2])


def _verdict(reply: Any) -> Verdict:
    word = Word(reply[0])
    if word is Word.ASSIGNED:
        return Verdict(word=word, assignment=_assignment(reply))
    if word is Word.KEEP:
        return Verdict(word=word, left_ms=None if reply[1] == -1 else reply[1])
    return Verdict(word=word)


def _exit(reply: Any) -> Exit:
    if reply[0] == "again":
        return Exit(is_first=False)
    return Exit(is_first=True, session_id=reply[1], state=reply[2], generation=reply[3])


def _end(reply: Any) -> End | None:
    if not reply:
        return None
    is_first, started_at_ms, ended_at_ms, silent_ms, agent_id = reply
    return End(
        is_first=bool(is_first),
        started_at_ms=started_at_ms or None,
        ended_at_ms=ended_at_ms,
        silent_ms=silent_ms,
        agent_id=agent_id,
    )


def _sweep(reply: Any) -> Sweep:
    handled, *parts = reply
    triples = zip(parts[0::3], parts[1::3], parts[2::3], strict=True)
    return Sweep(handled=handled, kill=tuple(Agent(id=i, host_id=h, nonce=n) for i, h, n in triples))
