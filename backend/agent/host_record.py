"""What the launcher tells Redis of its host, and what it learns there of its agents.

``host:{id}`` (hash: capacity, cores, trouble, boot_id, nonce, seen_ms, agents, last_error), its place in ``hosts``,
and the reports of exits. Redis may be away: then nothing here takes longer than a quarter of a second,
and reports wait.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import redis
from loguru import logger
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from backend.agent import machine, process
from backend.common import keys
from backend.common.contract import Agent, AgentState, EndReason, Exit
from backend.common.exchange import Exchange, agent_exited, host_reports
from backend.common.limits import Limits
from backend.common.settings import LauncherSettings

REDIS_SECONDS = 0.25
"""The launcher does nothing else meanwhile."""
REST_SECONDS = 1.0
"""After a failure Redis is left alone, or fifty exits at once would each wait for it."""
STOP_MS = 4_000
"""How long an agent that was told to stop may take: its goodbye (3 s) and leaving."""

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """An agent's end; ``exit_code`` is negative for a signal and None when unknown."""

    agent: Agent
    exit_code: int | None
    end_reason: EndReason | None = None
    ended_at_ms: int | None = None
    """When its call was over, by Redis' clock; None: it did not say."""


@dataclass(frozen=True, kw_only=True)
class AgentRecord:
    """What Redis holds of an agent; ``stopping_ms`` since when it is told to stop, None unless it is."""

    nonce: str
    state: str
    stopping_ms: int | None = None


def must_end(record: AgentRecord, nonce: str) -> bool:
    """Whether Redis wants this process gone, and it had its time.

    No nonce in the record: nobody arrived under this id in time, so a process that has it is not wanted either.
    """
    if record.nonce not in ("", nonce):
        return False
    if record.state == AgentState.GONE:
        return True
    return record.state == AgentState.STOPPING and record.stopping_ms is not None and record.stopping_ms >= STOP_MS


class HostRecord:
    """One connection to Redis, and the exits that it has not been told."""

    def __init__(self, settings: LauncherSettings, *, nonce: str) -> None:
        """``nonce`` names this launcher."""
        self.waiting: deque[ExitReport] = deque()
        self.memory: dict[str, int] = {}
        """What the host's agents use of it, see memory.py."""
        self.trouble = ""
        """Why it starts no agents, a value of Trouble; '' when it does."""
        self._settings, self._nonce = settings, nonce
        self._key = keys.host(settings.host_id)
        self._limits = Limits.waiting_at_most(settings.bot_startup_timeout_seconds)
        self._exchange = Exchange(limits=self._limits)
        self._last_error = ""
        self._rests_until = 0.0
        self._born_ms: str | None = None
        """Since when Redis remembers; None until it is known."""
        self._is_away = False
        """As of the last question: its loss and its return are logged once each."""
        self._client: redis.Redis = redis.Redis.from_url(
            settings.redis_url,
            decode_responses=True,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )

    def report(self, report: ExitReport, *, error: str = "") -> None:
        """Report an exit now, or when Redis answers again; ``error`` says what the agent died of, if it failed."""
        if error:
            self._last_error = f"{report.agent.id}: {error}"
        self.waiting.append(report)
        self.send_reports()
        if report in self.waiting:
            self._leave_for_the_next(report)

    def send_reports(self) -> None:
        """Send what waits. A report that fails goes to the end of the line: it must not keep the others."""
        for _ in range(len(self.waiting)):
            report = self.waiting[0]
            if self._ask(partial(self._send, report)) is None:
                self.waiting.rotate(-1)
                return
            self.waiting.popleft()
            process.forget(self._settings, report.agent.id)

    def read_agents(self, agents: Iterable[Agent], *, leaving: Sequence[str]) -> dict[str, AgentRecord] | None:
        """Ask for the records of these agents, those that Redis knows; None when Redis does not answer.

        To those whose ids are ``leaving`` no session is given from now on.
        """
        wanted = list(agents)
        answers = self._ask(lambda: self._read(wanted, leaving))
        if answers is None:
            return None
        (seconds, micros), born_ms, *rows = answers
        self._notice_loss(born_ms)
        now_ms = seconds * 1000 + micros // 1000
        records = {}
        for agent, (state, nonce), stop_ms in zip(wanted, rows[0::2], rows[1::2], strict=True):
            stopping_ms = None if stop_ms is None else now_ms - (int(stop_ms) - self._limits.stop)
            if state is not None:
                records[agent.id] = AgentRecord(nonce=nonce or "", state=state, stopping_ms=stopping_ms)
        return records

    def publish(self, *, agents: int, room: int | None, is_open: bool) -> None:
        """Say that the host is there, with so many living processes; it is in ``hosts`` while it takes more.

        ``room`` is how many it may start now, None: up to MAX_BOTS.
        """
        fields = {
            "capacity": self._settings.max_bots if room is None else min(self._settings.max_bots, agents + room),
            "cores": machine.cores(),
            "trouble": self.trouble,
            "boot_id": process.boot_id(),
            "nonce": self._nonce,
            "agents": agents,
            "last_error": self._last_error,
            **self.memory,
        }
        call = host_reports(self._settings.host_id, fields, is_open=is_open)
        self._ask(lambda: self._exchange.run_sync(self._client, call))

    def withdraw(self) -> None:
        """Say that the host is gone, and close the connection."""
        self._ask(self._remove)
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _notice_loss(self, born_ms: str | None) -> None:
        """Say loudly that Redis is another one, or empty, while it holds the state of every call."""
        if self._born_ms is not None and born_ms != self._born_ms:
            self._last_error = "Redis has forgotten everything: it was restarted empty, or is another one"
            logger.critical(self._last_error + "; calls go on, and are told to it by their agents")
        self._born_ms = born_ms

    def _leave_for_the_next(self, report: ExitReport) -> None:
        """Should we end before Redis is back: the next launcher reports what is in the file."""
        try:
            process.leave_last_words(self._settings, report.agent.id, process.LastWords(exit_code=report.exit_code))
        except OSError as error:  # a full disk costs the exit code, not the launcher
            logger.warning("an exit could not be noted", agent_id=report.agent.id, error=error.strerror)

    def _send(self, report: ExitReport) -> Exit:
        code, reason, ended_at_ms = report.exit_code, report.end_reason, report.ended_at_ms
        call = agent_exited(report.agent, exit_code=code, end_reason=reason, ended_at_ms=ended_at_ms)
        return self._exchange.run_sync(self._client, call)

    def _read(self, agents: list[Agent], leaving: Sequence[str]) -> list[Any]:
        with self._client.pipeline(transaction=True) as pipe:
            if leaving:
                pipe.zrem(keys.POOL_READY, *leaving)
            pipe.time()
            pipe.hget(keys.SWEEP, "born_ms")
            for agent in agents:
                pipe.hmget(keys.agent(agent.id), ["state", "nonce"])
                pipe.zscore(keys.DEADLINES, f"stop:{agent.id}")
            answers: list[Any] = pipe.execute()
        return answers[-2 - 2 * len(agents) :]

    def _remove(self) -> list[Any]:
        with self._client.pipeline(transaction=True) as pipe:
            pipe.delete(self._key)
            for hosts in (keys.HOSTS, keys.POOL_PLACES):
                pipe.zrem(hosts, self._settings.host_id)
            answers: list[Any] = pipe.execute()
        return answers

    def _ask(self, question: Callable[[], Value]) -> Value | None:
        """Ask Redis once; None when it does not answer, and for a while after that."""
        if time.monotonic() < self._rests_until:
            return None
        try:
            answer = question()
        except RedisError as error:
            self._rests_until = time.monotonic() + REST_SECONDS
            if not self._is_away:
                logger.warning("Redis does not answer the launcher", error=type(error).__name__)
            self._is_away = True
            return None
        if self._is_away:
            logger.info("Redis answers the launcher again", unreported=len(self.waiting))
        self._is_away = False
        return answer
