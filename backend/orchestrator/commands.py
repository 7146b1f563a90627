"""Commands to Celery, sent from an event loop. None is ever waited for by a caller."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from celery import Celery
from kombu.exceptions import OperationalError
from loguru import logger
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from backend.common.contract import Agent

CONTROL = "control"
REFILL_SECONDS = 5
"""A refill that is older than this was overtaken by the periodic ones."""
REFILL_PAUSE_SECONDS = 0.1
"""Between two of them: sending one costs as much as a start."""
COMMAND_SECONDS = 20
"""As long as a reserved slot is kept."""
LOOK_SECONDS = 1.0


SENT_AT = "sent_at"
"""Header of every command: unix seconds by its sender's clock."""


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """How many commands lie in a queue, and how long ago the oldest was sent (0.0 when it is empty)."""

    length: int
    oldest_seconds: float


def host_queue(host_id: str) -> str:
    """The queue of one host's worker."""
    return f"host.{host_id}"


class Commands:
    """Sends tasks by name. A command that cannot be sent is logged and dropped: the periodic tasks make up for it."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="commands")  # publishing blocks, the loop must not
        self._prefix = app.conf.broker_transport_options["global_keyprefix"]
        # A connection of our own to look at the queues: kombu's tries for many seconds, and blocks.
        self._broker: Any = redis.asyncio.Redis.from_url(
            app.conf.broker_url,
            socket_timeout=LOOK_SECONDS,
            socket_connect_timeout=LOOK_SECONDS,
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        self._is_refill_wanted = False
        self._refilling: asyncio.Task[None] | None = None
        self._is_closed = False

    async def spawn(self, host_id: str, agent_id: str) -> None:
        """Let the host start the agent whose slot is reserved."""
        await self._send("greenroom.spawn", [agent_id], queue=host_queue(host_id), expires=COMMAND_SECONDS)

    async def kill(self, host_id: str, agents: Iterable[Agent]) -> None:
        """Let the host end these very processes; harmless twice."""
        names = [name for agent in agents for name in (agent.id, agent.nonce)]
        await self._send("greenroom.kill", names, queue=host_queue(host_id), expires=COMMAND_SECONDS)

    async def forget_host(self, host_id: str) -> None:
        """Delete the queue of a host that will not come back."""

        def delete() -> None:
            name = host_queue(host_id)
            with self._app.connection_for_write() as connection:
                channel: Any = connection.default_channel
                # kombu deletes what it knows of: the queue as its own worker binds it, and as a sender does.
                for exchange in (CONTROL, name):
                    channel.exchange_declare(exchange)
                    channel.queue_bind(name, exchange, name)
                channel.queue_delete(name)

        await self._publish(delete, "forget_host")

    async def ping(self) -> None:
        """Return when the broker answers. Raises: redis.RedisError"""
        await self._broker.ping()

    async def queue_lengths(self, host_ids: list[str]) -> dict[str, int]:
        """How many commands lie in each queue. Raises: redis.RedisError"""
        names = [CONTROL, *map(host_queue, host_ids)]
        async with self._broker.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.llen(self._prefix + name)
            return dict(zip(names, await pipe.execute(), strict=True))

    async def queue_states(self, host_ids: list[str]) -> dict[str, QueueState]:
        """The same with the age of the oldest command, at a greater cost. Raises: redis.RedisError"""
        names = [CONTROL, *map(host_queue, host_ids)]
        async with self._broker.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.llen(self._prefix + name)
                pipe.lindex(self._prefix + name, -1)
            answers = await pipe.execute()
        rows = zip(names, answers[0::2], answers[1::2], strict=True)
        return {name: QueueState(length=length, oldest_seconds=_age(oldest)) for name, length, oldest in rows}

    def refill_soon(self, after_seconds: float = 0.0) -> None:
        """Ask for new agents, without waiting: as often as a burst of starts is worth it.

        Later where a call begins now: a new agent joins its room, on the cores on which the caller connects.
        """
        asyncio.get_running_loop().call_later(after_seconds, self._want_refill)

    def _want_refill(self) -> None:
        self._is_refill_wanted = True
        if self._refilling is None and not self._is_closed:
            self._refilling = asyncio.create_task(self._refill())

    async def _refill(self) -> None:
        try:
            while self._is_refill_wanted:
                self._is_refill_wanted = False
                await self._send("greenroom.refill", [], queue=CONTROL, expires=REFILL_SECONDS)
                await asyncio.sleep(REFILL_PAUSE_SECONDS)
        finally:
            self._refilling = None

    async def _send(self, name: str, args: list[Any], *, queue: str, expires: int) -> None:
        def send() -> None:
            self._app.send_task(name, args=args, queue=queue, expires=expires, ignore_result=True)

        await self._publish(send, name)

    async def _publish(self, publish: Callable[[], None], name: str) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._sender, publish)
        except (OperationalError, RedisError, OSError) as error:
            logger.warning("a command could not be sent", task=name, error=type(error).__name__)

    async def close(self) -> None:
        """Send nothing more."""
        self._is_closed = True
        if self._refilling:
            self._refilling.cancel()
        self._sender.shutdown(wait=False, cancel_futures=True)
        await self._broker.aclose()


def _age(command: bytes | None) -> float:
    """How long ago a command was sent; 0.0 when none is there, or nobody noted it."""
    sent_at = json.loads(command)["headers"].get(SENT_AT) if command else None
    return max(0.0, time.time() - sent_at) if sent_at else 0.0
