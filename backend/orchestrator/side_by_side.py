"""Several things that are due at the same time, of which none waits for another, or ends with it."""

import asyncio
from collections.abc import Awaitable, Callable

from loguru import logger
from redis.exceptions import RedisError

from backend.common.launcher_socket import LauncherError
from backend.orchestrator.errors import GreenroomError
from backend.orchestrator.house import House

Work = Callable[[House], Awaitable[object]]

OUTAGES = (RedisError, GreenroomError, LauncherError, TimeoutError)


async def do_all(house: House, *works: Work) -> None:
    """Do all of it, and only then raise what was no outage, if anything was."""
    faults = await asyncio.gather(*(_attempt(house, work) for work in works), return_exceptions=True)
    for fault in faults:
        if fault:
            raise fault


def give_up(what: str, error: Exception) -> None:
    """Log an outage: the next time makes up for it."""
    logger.warning("given up until the next time", task=what, error=f"{type(error).__name__}: {error}"[:200])


async def _attempt(house: House, work: Work) -> None:
    try:
        await work(house)
    except OUTAGES as error:
        give_up(getattr(work, "__name__", ""), error)
