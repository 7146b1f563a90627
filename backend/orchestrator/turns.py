"""How many starts go on at a time, and how long the others wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from backend.orchestrator.errors import RedisAwayError, TooManyStartsError

STARTS_AT_ONCE = 16
"""Each start's second for Redis begins when it is its turn: of a burst all would be late by each other's work."""
TURN_SECONDS = 5.0
"""How long a start waits while Redis answers those before it: a slow machine serves its burst, only later."""


class Turns:
    """So many starts at a time, first come, first served."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(STARTS_AT_ONCE)
        self._redis_answers = True

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it.

        Raises: TooManyStartsError, or RedisAwayError when Redis did not answer the last one of those waited for: with
        the turn's own wait for Redis it would be more than the 3 s in which everyone is told.
        """
        has_to_wait = self._places.locked()
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise TooManyStartsError("Too many starts at once: try again soon", retry_after_seconds=5) from None
        try:
            if has_to_wait and not self._redis_answers:
                raise RedisAwayError
            async with self._listen_to_redis():
                yield
        finally:
            self._places.release()

    @asynccontextmanager
    async def _listen_to_redis(self) -> AsyncIterator[None]:
        answers = True
        try:
            yield
        except (RedisError, RedisAwayError):
            answers = False
            raise
        finally:
            self._redis_answers = answers
