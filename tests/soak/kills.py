"""Processes of the product are killed at random moments, as by ``kill -9``."""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping

WEIGHTS = {"api": 2, "worker": 2, "worker child": 1, "beat": 1, "launcher": 2, "agent": 6}
"""Who is killed how often, by chance."""

Pids = Mapping[str, list[int]]
"""The processes of each program at this moment."""


class Kills:
    """What is killed, by a schedule that follows from the seed."""

    def __init__(self, pids: Callable[[], Pids], *, seed: int) -> None:
        self.count: Counter[str] = Counter()
        self._pids = pids
        self._draw = random.Random(f"kills {seed}")  # noqa: S311  # a test's

    async def go_on(self, *, mean_seconds: float) -> None:
        """Kill one process after the other, for ever."""
        while True:
            await asyncio.sleep(self._draw.expovariate(1 / mean_seconds))
            program = self._draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            pids = (await asyncio.to_thread(self._pids)).get(program, [])
            if pids:
                with contextlib.suppress(ProcessLookupError):  # it went by itself
                    os.kill(self._draw.choice(pids), signal.SIGKILL)
                    self.count[program] += 1
