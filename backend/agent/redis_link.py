"""A launched agent's link to the rest of the product: its fence, its clock and its record in Redis."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace

import redis.asyncio
from loguru import logger
from redis.exceptions import RedisError

from backend.agent import process, watchdog
from backend.agent.briefing import Command, Turn
from backend.agent.stages import Stages
from backend.common import keys
from backend.common.contract import REMEMBERED, Agent, Assignment, EndReason, Progress, Verdict
from backend.common.exchange import (
    Call,
    Exchange,
    Reply,
    agent_returns,
    begin_session,
    confirm_claim,
    end_session,
    heartbeat,
    record_turn,
)
from backend.common.settings import CommonSettings

GOODBYE_SLACK_SECONDS = 1.0
"""The launcher acts 2.5 s after the deadline that it is told; a goodbye may last 3 s."""
ALARM_SECONDS = process.LATE_SECONDS - 0.2
"""Past that deadline the process is ended whatever it does, with or without a launcher."""
KEPT_TURNS = 200
KEPT_TURNS_BYTES = 64 * 1024
RETRY_SECONDS = 0.5
END_SECONDS = 1.0
"""How long an end waits for Redis; then the launcher is told instead."""
CONFIRM_SECONDS = 20.0
"""How long a lost connection to Redis may delay the leave to speak; then a successor has it."""


class RedisLink:
    """One session of one agent. Implements ``Link``."""

    def __init__(self, exchange: Exchange, client: redis.asyncio.Redis, agent: Agent, settings: CommonSettings) -> None:
        self.progress: Callable[[], Progress] = Progress
        self.stages = Stages()
        self.assignment: Assignment | None = None
        self.is_over = False
        """True once the end is decided here: what Redis says of a stopped agent is then no news."""
        self._exchange, self._client, self._agent, self._settings = exchange, client, agent, settings
        self._commands: asyncio.Queue[Command] = asyncio.Queue(maxsize=100)
        self._remembered: dict[str, str] = {}
        self._clock_offset_ms: float | None = None
        self._background: set[asyncio.Task[None]] = set()

    def hold(self, assignment: Assignment, record: Mapping[str, str]) -> None:
        """Take the assignment; keep what a Redis that forgets must be told."""
        self.assignment = assignment
        self._remembered = {name: record[name] for name in REMEMBERED if record.get(name)}
        # Until the call begins: the caller may take a while to come, then talk as long as anyone may.
        slack = self._settings.bot_startup_timeout_seconds + 300
        self._write_deadline(slack + int(record["longest_ms"]) / 1000)

    def put(self, command: Command) -> None:
        """Hand a command to the bot; more than a hundred unread ones are a fault of the sender and dropped."""
        try:
            self._commands.put_nowait(command)
        except asyncio.QueueFull:
            logger.warning("a command was dropped: the inbox is full", order=command.order)

    async def beat(self) -> Verdict:
        """Send one heartbeat. Raises: redis.RedisError"""
        stages = self.stages.untold()
        progress = replace(self.progress(), stages=stages)
        verdict = await self._ask(heartbeat(self._agent, self.assignment, progress))
        self.stages.told(stages)
        return verdict

    async def commands(self) -> AsyncIterator[Command]:
        """Yield what the inbox says, until the bot returns."""
        while True:
            yield await self._commands.get()

    async def confirm(self) -> bool:
        """Ask for leave to speak; without an answer from Redis for 20 s it is refused."""
        until = time.monotonic() + CONFIRM_SECONDS
        while time.monotonic() < until:
            try:
                return await self._ask(confirm_claim(self._agent, self._held()))
            except RedisError as error:
                logger.warning("the leave to speak is delayed: Redis does not answer", error=type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
        return False

    async def caller_came(self) -> bool:
        """Look what LiveKit's webhooks said."""
        try:
            return "joined" in await self._client.hvals(keys.session_callers(self._held().session_id))
        except RedisError:
            return False

    async def begin(self) -> float | None:
        """Start billed time; without Redis the call goes on, and the start is told when it answers."""
        try:
            return await self._begin()
        except RedisError as error:
            logger.warning("the start could not be stored yet", error=type(error).__name__)
            self._in_background(self._begin_later())
            return int(self._remembered["longest_ms"]) / 1000

    async def _begin(self) -> float | None:
        reply = await self._ask(begin_session(self._agent, self._held()))
        if reply is None:
            return None
        started_at_ms, left_ms = reply
        self._remembered["started_at_ms"] = str(started_at_ms)
        now_ms = started_at_ms + int(self._remembered["longest_ms"]) - left_ms
        self._clock_offset_ms = now_ms - time.monotonic() * 1000
        self._write_deadline(left_ms / 1000 + GOODBYE_SLACK_SECONDS)
        return left_ms / 1000

    async def _begin_later(self) -> None:
        while not self.is_over:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await self._begin()
            except RedisError:
                continue
            return

    async def record(self, turn: Turn) -> None:
        """Keep a finished turn for a successor; a Redis that is away costs the turn, not the call."""
        entry = json.dumps({"role": turn.role, "text": turn.text, "interrupted": turn.interrupted})
        if len(entry) > KEPT_TURNS_BYTES // 4:
            return
        try:
            await self._ask(record_turn(self._agent, self._held(), entry, most=KEPT_TURNS, most_bytes=KEPT_TURNS_BYTES))
        except RedisError as error:
            logger.warning("a turn was not stored", error=type(error).__name__)

    async def end(self, reason: EndReason) -> None:
        """End the session; when Redis does not answer within a second, leave the reason with the launcher."""
        if self.is_over:
            return
        self.is_over = True
        held, ended_at_ms = self._held(), self._now_ms()
        call = end_session(held.session_id, reason, generation=held.generation, ended_at_ms=ended_at_ms)
        try:
            async with asyncio.timeout(END_SECONDS):
                ended = await self._ask(call)
            logger.info("session ended", reason=reason, first=bool(ended and ended.is_first))
        except (RedisError, TimeoutError):
            process.leave_last_words(
                self._settings, self._agent.id, process.LastWords(end_reason=reason, ended_at_ms=ended_at_ms)
            )
            logger.warning("session ended without Redis; the launcher reports it", reason=reason)

    async def come_back(self) -> bool:
        """Tell a Redis that forgot about this call; False: it is another agent's now."""
        return await self._ask(agent_returns(self._agent, self._held(), remembered=self._remembered))

    def close(self) -> None:
        """Stop what runs behind the bot's back."""
        for task in self._background:
            task.cancel()

    def _now_ms(self) -> int | None:
        """Redis' clock, carried on by our own since the call began; None before that."""
        return None if self._clock_offset_ms is None else int(time.monotonic() * 1000 + self._clock_offset_ms)

    def _held(self) -> Assignment:
        if self.assignment is None:
            raise RuntimeError("no session is held yet")
        return self.assignment

    async def _ask(self, call: Call[Reply]) -> Reply:
        return await self._exchange.run(self._client, call)

    def _write_deadline(self, seconds: float) -> None:
        if process.write_deadline(self._settings, self._agent.id, time.time() + seconds):
            watchdog.be_gone_in(seconds + ALARM_SECONDS)

    def _in_background(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
