"""After the fork: join an own room, arrive, wait on the inbox, hold one session, leave.

The inbox is a bell. What is true stands in the hashes, and the heartbeat's answer repeats what
was missed; so an agent whose bell was lost learns of its session within two seconds.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import redis.asyncio
from loguru import logger
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from backend.agent import call_trace
from backend.agent.briefing import Bot, Briefing, Command, Turn
from backend.agent.own_room import OwnRoom
from backend.agent.redis_link import RedisLink
from backend.agent.room import RoomNotJoinedError
from backend.agent.session_log import SessionLog
from backend.common import keys, stalls, tracing
from backend.common.contract import Agent, Assignment, EndReason, Order, Verdict, Word
from backend.common.exchange import Exchange
from backend.common.limits import Limits
from backend.common.settings import LauncherSettings

HEARTBEAT_SECONDS = 2.0
AFTER_A_FAULT_SECONDS = 0.5
"""Under a second: a lease is three heartbeats, and Redis may have been away for two of them."""
BLOCK_MS = 2_000
REDIS_SECONDS = 1.0
INBOX_SECONDS = 5.0
"""Longer than BLOCK_MS, or every quiet read would count as a broken connection."""
BRIEFING_SECONDS = 10.0

LEFT_TO_ANOTHER = {EndReason.AGENT_LOST, EndReason.AGENT_FAULT, EndReason.SHUTDOWN}
"""Why an agent leaves its session without ending it: it is another agent's, or becomes one's when this one exits."""

LEAVE = Assignment(session_id="", generation=0)
"""Stands for 'nobody needs you': told to stop while warm."""


async def serve(agent: Agent, bot: Bot, settings: LauncherSettings, *, room: str = "", room_token: str = "") -> int:
    """Live the whole life of an agent; returns its exit code. ``room`` is its own, '' when parked."""
    tracing.start(settings, "agent")
    standby = Standby(agent, settings, OwnRoom(room, room_token, nobody_came_seconds=settings.nobody_came_seconds))
    try:
        return await standby.live(bot)
    finally:
        await standby.close()


def exit_code(reason: EndReason) -> int:
    """0 when the call ended as calls do; a number of its own for what the platform did."""
    codes = {
        EndReason.SHUTDOWN: 10,
        EndReason.VENDOR_FAILED: 20,
        EndReason.ROOM_LOST: 21,
        EndReason.AGENT_FAULT: 22,
        EndReason.AGENT_LOST: 23,
    }
    return codes.get(reason, 0)


class Standby:
    """One agent process: its connections, its heartbeat, its one assignment."""

    def __init__(self, agent: Agent, settings: LauncherSettings, own: OwnRoom | None = None) -> None:
        self._agent, self._settings = agent, settings
        self._own = own or OwnRoom()
        self._exchange = Exchange(limits=Limits.waiting_at_most(settings.bot_startup_timeout_seconds))
        self._client = _connect(settings, seconds=REDIS_SECONDS)
        self._inbox_client = _connect(settings, seconds=INBOX_SECONDS)
        self._link = RedisLink(self._exchange, self._client, agent, settings)
        self._work: asyncio.Future[Assignment] = asyncio.get_running_loop().create_future()
        self._taken = ("", 0)
        """How the session came, by "bell" or after a "wait" in the line, and when, in Unix nanoseconds."""
        self._log = SessionLog(settings)

    async def live(self, bot: Bot) -> int:
        """Arrive and wait; hold the session that comes; returns the exit code."""
        try:
            await self._own.join(self._settings.livekit_url)
        except RoomNotJoinedError as error:
            logger.warning("the own room was not joined", cause=str(error))
            return exit_code(EndReason.ROOM_LOST)
        await self._arrive()
        helpers = [asyncio.create_task(work) for work in (self._read_inbox(), self._beat(), self._watch_own_room())]
        for helper in helpers:
            helper.add_done_callback(self._helper_stopped)
        try:
            assignment = await self._work
            if assignment is LEAVE:
                await self._own.leave()
                return 0
            return await self._hold(assignment, bot)
        finally:
            for helper in helpers:
                helper.cancel()

    async def close(self) -> None:
        """Send the last log lines, close the connections."""
        self._link.close()
        with contextlib.suppress(RedisError):  # the file has them
            await self._log.flush(self._client)
        self._log.close()
        await self._client.aclose()
        await self._inbox_client.aclose()

    async def _hold(self, assignment: Assignment, bot: Bot) -> int:
        stalls.look_closely()
        briefing = await self._be_briefed(assignment)
        if briefing is None:
            return 0
        logger.info("session assigned", generation=assignment.generation, is_successor=briefing.has_begun)
        with briefing.trace as trace:
            try:
                reason = await bot(briefing, self._link)
            except Exception:
                logger.exception("the bot failed")
                reason = EndReason.AGENT_FAULT
            trace.detail("call", self._taken[1], end_reason=reason, ended_by=reason.cause)
        if reason not in LEFT_TO_ANOTHER:
            await self._link.end(reason)
        return exit_code(reason)

    async def _be_briefed(self, assignment: Assignment) -> Briefing | None:
        """Read the session; None when it is another agent's by now, or Redis does not answer in time."""
        until = time.monotonic() + BRIEFING_SECONDS
        while time.monotonic() < until:
            try:
                record, prompt, turns = await self._read_session(assignment.session_id)
            except RedisError:
                await asyncio.sleep(AFTER_A_FAULT_SECONDS)
                continue
            if record.get("agent_id") != self._agent.id or record.get("generation") != str(assignment.generation):
                return None
            self._link.hold(assignment, record)
            logger.configure(extra={**_bound(self._agent), "session_id": assignment.session_id})
            self._log.begin(assignment.session_id)
            briefing = _briefing(self._agent, self._settings, assignment, (record, prompt, turns))
            trace = call_trace.begin(self._agent, assignment, record, self._taken)
            joined, was_awaited = self._own.for_session(assignment.session_id), self._taken[0] == "wait"
            return replace(briefing, joined=joined, was_awaited=was_awaited, trace=trace)
        return None

    async def _read_session(self, session_id: str) -> tuple[dict[str, str], dict[str, str], list[str]]:
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.session(session_id))
            pipe.hgetall(keys.session_prompt(session_id))
            pipe.lrange(keys.session_turns(session_id), 0, -1)
            record, prompt, turns = await pipe.execute()
        return record, prompt, turns

    async def _arrive(self) -> None:
        while not self._work.done():
            try:
                reply = await self._exchange.run(self._client, self._own.arrival(self._agent))
            except RedisError:
                await asyncio.sleep(AFTER_A_FAULT_SECONDS)
                continue
            if isinstance(reply, Assignment):
                self._take(reply, by="wait")
            elif reply == "stale":
                self._take(LEAVE)
            return

    def _take(self, assignment: Assignment, *, by: str = "bell") -> None:
        # One session in a life: a second one is found out by the heartbeat and goes back to the line.
        if not self._work.done():
            self._link.stages.begin()
            self._taken = (by, time.time_ns())
            self._work.set_result(assignment)

    async def _watch_own_room(self) -> None:
        """Go with the room: a warm agent without one is worth nothing, and another is made at once."""
        if not self._own.is_wanted:
            return
        is_lost = await self._own.over()
        if not self._work.done():  # in a call the bot hears of it
            if is_lost:
                logger.warning("the own room was lost")
            self._take(LEAVE)

    async def _read_inbox(self) -> None:
        inbox, last_id = keys.agent_inbox(self._agent.id), "0"
        while True:
            try:
                reply = await self._inbox_client.xread({inbox: last_id}, count=100, block=BLOCK_MS)
            except RedisError:
                await asyncio.sleep(AFTER_A_FAULT_SECONDS)
                continue
            for entry_id, fields in _entries(reply):
                last_id = entry_id
                self._obey(fields)

    def _obey(self, fields: Mapping[str, str]) -> None:
        order, session_id = Order(fields["command"]), fields["session_id"]
        if order is Order.ASSIGN:
            self._take(Assignment(session_id=session_id, generation=int(fields["generation"])))
        elif not self._work.done():
            self._take(LEAVE)
        elif session_id != self._work.result().session_id:
            return
        elif order is Order.END:
            self._link.is_over = True
            self._link.put(Command(order=order, reason=EndReason(fields["text"])))
        else:
            self._link.put(Command(order=order, text=fields["text"]))

    async def _beat(self) -> None:
        while True:
            try:
                await self._heed(await self._link.beat())
                await self._log.flush(self._client)
            except RedisError:
                await asyncio.sleep(AFTER_A_FAULT_SECONDS)
                continue
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _heed(self, verdict: Verdict) -> None:
        if verdict.word is Word.ASSIGNED and verdict.assignment:
            self._take(verdict.assignment)
        elif verdict.word is Word.STOP:
            self._stop()
        elif verdict.word is Word.UNKNOWN and not self._work.done():
            await self._arrive()
        elif verdict.word is Word.UNKNOWN and self._link.assignment:
            logger.error("Redis does not know this call any more: it is told of it again")
            if not await self._link.come_back():
                self._stop()

    def _stop(self) -> None:
        """Leave at once and without a word: the session, if there was one, ended or is another agent's."""
        if not self._work.done():
            self._take(LEAVE)
        elif not self._link.is_over:
            self._link.put(Command(order=Order.END))

    def _helper_stopped(self, task: "asyncio.Task[None]") -> None:
        # Without heartbeats the lease lapses and the caller gets a successor: say why, then go.
        if not task.cancelled() and (error := task.exception()):
            logger.opt(exception=error).error("the agent lost its heartbeat or its inbox")
            self._stop()


def _connect(settings: LauncherSettings, *, seconds: float) -> redis.asyncio.Redis:
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
        settings.redis_url,
        decode_responses=True,
        socket_timeout=seconds,
        socket_connect_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),  # our own loops repeat, and know what is safe to repeat
    )
    return client


def _entries(reply: Any) -> list[tuple[str, dict[str, str]]]:
    """Flatten XREAD's answer for one stream; it is a list or, by protocol version, a mapping."""
    if not reply:
        return []
    (entries,) = reply.values() if isinstance(reply, dict) else [stream[1] for stream in reply]
    flat = entries[0] if entries and isinstance(entries[0], list) else entries
    return [(entry_id, fields) for entry_id, fields in flat]


def _bound(agent: Agent) -> dict[str, str]:
    return {"program": "agent", "host_id": agent.host_id, "agent_id": agent.id}


def _briefing(
    agent: Agent,
    settings: LauncherSettings,
    assignment: Assignment,
    session: tuple[Mapping[str, str], Mapping[str, str], list[str]],
) -> Briefing:
    record, prompt, turns = session
    return Briefing(
        session_id=assignment.session_id,
        generation=assignment.generation,
        agent_id=agent.id,
        host_id=agent.host_id,
        livekit_url=settings.livekit_url,
        room_token=record.get("room_token", ""),
        user_name=record.get("user_name", ""),
        voice_id=record.get("voice_id", ""),
        caller_identity=record.get("caller_identity", ""),
        opening_line=prompt.get("opening_line", ""),
        failover_line=prompt.get("failover_line"),
        system_prompt=prompt.get("system_prompt", ""),
        longest_seconds=int(record["longest_ms"]) / 1000,
        has_begun=bool(record.get("started_at_ms")),
        history=tuple(Turn(**json.loads(turn)) for turn in turns),
    )
