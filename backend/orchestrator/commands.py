"""Commands to Celery, sent from an event loop. None is ever waited for by a caller."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from loguru import logger
from redis.exceptions import RedisError

CONTROL = "control"
REFILL_SECONDS = 5
"""A refill that is older than this was overtaken by the periodic ones."""
COMMAND_SECONDS = 20
"""As long as a reserved slot is kept."""


def host_queue(host_id: str) -> str:
    """The queue of one host's worker."""
    return f"host.{host_id}"


class Commands:
    """Sends tasks by name. A command that cannot be sent is logged and dropped: the periodic tasks make up for it."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="commands")  # publishing blocks, the loop must not
        self._refills = 0
        self._background: set[asyncio.Future[None]] = set()

    async def spawn(self, host_id: str, agent_id: str) -> None:
        """Let the host start the agent whose slot is reserved."""
        await self._send("greenroom.spawn", [agent_id], queue=host_queue(host_id), expires=COMMAND_SECONDS)

    async def kill(self, host_id: str, agent_id: str, nonce: str) -> None:
        """Let the host end this very process; harmless twice."""
        await self._send("greenroom.kill", [agent_id, nonce], queue=host_queue(host_id), expires=COMMAND_SECONDS)

    async def forget_host(self, host_id: str) -> None:
        """Delete the queue of a host that will not come back."""

        def delete() -> None:
            with self._app.connection_for_write() as connection:
                connection.default_channel.queue_delete(host_queue(host_id))

        await self._publish(delete, "forget_host")

    async def ping(self) -> None:
        """Return when the broker answers. Raises: OSError, redis.RedisError"""
        await asyncio.get_running_loop().run_in_executor(self._sender, self._lengths, [CONTROL])

    async def queue_lengths(self, host_ids: list[str]) -> dict[str, int]:
        """How many commands lie in each queue. Raises: OSError, redis.RedisError"""
        names = [CONTROL, *map(host_queue, host_ids)]
        return await asyncio.get_running_loop().run_in_executor(self._sender, self._lengths, names)

    def _lengths(self, names: list[str]) -> dict[str, int]:
        try:
            with self._app.connection_for_read() as connection:
                return {name: connection.default_channel.client.llen(name) for name in names}
        except OperationalError as error:
            raise ConnectionError("the broker does not answer") from error

    def refill_soon(self) -> None:
        """Ask for new agents without waiting; one request at a time is enough for any number of starts."""
        if self._refills:
            return
        self._refills += 1
        task = asyncio.ensure_future(self._send("greenroom.refill", [], queue=CONTROL, expires=REFILL_SECONDS))
        self._background.add(task)
        task.add_done_callback(self._refill_sent)

    def _refill_sent(self, task: "asyncio.Future[None]") -> None:
        self._refills -= 1
        self._background.discard(task)

    async def _send(self, name: str, args: list[Any], *, queue: str, expires: int) -> None:
        def send() -> None:
            self._app.send_task(name, args=args, queue=queue, expires=expires, ignore_result=True)

        await self._publish(send, name)

    async def _publish(self, publish: Callable[[], None], name: str) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._sender, publish)
        except (OperationalError, RedisError, OSError) as error:
            logger.warning("a command could not be sent", task=name, error=type(error).__name__)

    def close(self) -> None:
        """Send nothing more."""
        self._sender.shutdown(wait=False, cancel_futures=True)
