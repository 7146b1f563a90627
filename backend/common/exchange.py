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

from backend.common import keys, numbers, replies
from backend.common.contract import (
    Agent,
    Arrival,
    Assignment,
    End,
    EndReason,
    Exit,
    Progress,
    Reserved,
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
    return Call(operation="session_arrives", keys=tuple(names), arguments=arguments, read=replies.arrival)


def agent_arrives(
    agent: Agent, *, room: str = "", room_token: str = "", room_for_ms: int | None = None
) -> Call[Assignment | str]:
    """Offer an agent: an assignment, or ``"warm"``, or ``"stale"`` (it must exit)."""
    room_for = "" if room_for_ms is None else room_for_ms
    return Call(
        operation="agent_arrives",
        keys=(keys.agent(agent.id),),
        arguments=(agent.id, agent.nonce, agent.host_id, room, room_token, room_for, agent.pid),
        read=lambda reply: replies.assignment(reply) if reply[0] == Word.ASSIGNED else reply[0],
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
        arguments=(agent.id, agent.nonce, *work, done.frames, json.dumps(dict(done.usage)), *_pairs(done.stages)),
        read=replies.verdict,
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


def record_turn(agent: Agent, assignment: Assignment, turn: str, *, most: int, most_bytes: int) -> Call[bool]:
    """Keep a turn for a successor, and of all turns the newest; False: the session has ended or is another's."""
    return Call(
        operation="record_turn",
        keys=(keys.session(assignment.session_id),),
        arguments=(assignment.session_id, agent.id, assignment.generation, turn, most, most_bytes),
        read=bool,
    )


def agent_exited(
    agent: Agent, *, exit_code: int | None, end_reason: EndReason | None = None, ended_at_ms: int | None = None
) -> Call[Exit]:
    """Report a dead process once; its session arrives again, or ends if the agent said so itself.

    ``exit_code`` is negative for a signal, None when nobody could wait for the process. ``ended_at_ms`` is when
    the agent's call was over, by Redis' clock; None: nobody knows.
    """
    said = (end_reason, end_reason.cause) if end_reason else ("", "")
    code = "" if exit_code is None else exit_code
    return Call(
        operation="agent_exited",
        keys=(keys.agent(agent.id),),
        arguments=(agent.id, agent.nonce, code, *said, "" if ended_at_ms is None else ended_at_ms),
        read=replies.exited,
    )


def end_session(
    session_id: str, reason: EndReason, *, generation: int | None = None, ended_at_ms: int | None = None
) -> Call[End | None]:
    """End a session exactly once; None when it is unknown or the asking agent is stale.

    ``ended_at_ms`` is when its call was over, by Redis' clock as an agent reckons it; None: now.
    """
    given = ("" if value is None else value for value in (generation, ended_at_ms))
    return Call(
        operation="end_session",
        keys=(keys.session(session_id),),
        arguments=(session_id, reason, reason.cause, *given),
        read=replies.ended,
    )


def expire_leases(*, most: int = 25) -> Call[Sweep]:
    """Act on at most ``most`` deadlines that have passed. More than 25 failovers at once hold up claims."""
    return Call(operation="expire_leases", keys=(keys.SWEEP,), arguments=(most,), read=replies.swept)


def reserve_spawns(*, target: int, most: int, base: str, cores: int = 1) -> Call[Reserved]:
    """Take slots for the agents that shall start now, at most ``most``, on the hosts with the most room.

    ``target`` are the warm agents wanted in the fleet; new ids are ``base`` and a number. ``cores`` are those of
    the live hosts: how many agents they can start at a time, see demand.py.
    """
    return Call(
        operation="reserve_spawns",
        keys=(keys.POOL_PLACES,),
        arguments=(target, most, base, max(1, cores)),
        read=replies.reserved,
    )


def let_go(*, target: int, most: int) -> Call[tuple[str, ...]]:
    """End at most ``most`` of the warm agents that are more than ``target``; returns their ids."""
    return Call(operation="let_go", keys=(keys.POOL_READY,), arguments=(target, most), read=tuple)


def host_reports(host_id: str, fields: Mapping[str, object], *, is_open: bool) -> Call[int]:
    """Say that a host is there, and whether it takes more agents; ``fields`` hold its capacity and cores."""
    return Call(
        operation="host_reports",
        keys=(keys.host(host_id),),
        arguments=(host_id, int(is_open), *_pairs(fields)),
        read=int,
    )


def session_settled(session_id: str) -> Call[bool]:
    """Take an ended session off the outbox, once it is accounted for."""
    return Call(operation="session_settled", keys=(keys.session(session_id),), arguments=(session_id,), read=bool)


def livekit_event(  # noqa: PLR0913  # what a webhook holds
    event_id: str, *, session_id: str, event: str, room_sid: str, room_made_ms: int = 0, participant_sid: str = ""
) -> Call[str]:
    """Take one webhook once: ``again``, ``unknown`` (no such session), ``ended`` (it ended one) or ``taken``."""
    return Call(
        operation="livekit_event",
        keys=(keys.livekit_event(event_id), keys.session(session_id)),
        arguments=(session_id, event, participant_sid, room_sid, room_made_ms),
        read=str,
    )


def read_fleet() -> Call[Fleet]:
    """Read what /metrics shows of the fleet, all of one moment. Changes nothing."""
    return Call(operation="read_fleet", keys=(keys.HOSTS, keys.SWEEP), arguments=(), read=Fleet.read)


def _pairs(fields: Mapping[str, object]) -> list[str]:
    return [str(part) for pair in fields.items() for part in pair]
