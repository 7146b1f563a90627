"""Whether this host should start one more agent now: not when memory is short, and not again and again in vain."""

import random
import time
from collections.abc import Callable, Collection

from backend.agent import machine
from backend.common.contract import Trouble

FREE_FAILURES = 3
"""Agents that fail one after the other when they start, before the host holds back: one may be an accident."""
STEADY_SECONDS = 30.0
"""Who is warm for so long, or has a session, is well: an agent that ends by itself before that crashed at its start."""
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 1.0, 30.0
"""Doubled with each further failure. A mended bot is noticed in half a minute, a broken one costs few starts."""
MB = 1024 * 1024


class Restraint:
    """What speaks against one more agent; ``reserve_mb`` is to stay free, 0: whatever."""

    def __init__(
        self,
        *,
        reserve_mb: int,
        available_bytes: Callable[[], int] = machine.available_bytes,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reserve_bytes, self._available_bytes, self._now = reserve_mb * MB, available_bytes, now
        self._failures = 0
        self._tried: set[str] = set()
        """Who was started since the last failure."""
        self._doubts_ready = False
        """Whether the last one that failed had been ready."""
        self._rests_until = 0.0

    def trouble(self) -> Trouble | None:
        """What is wrong with this host, whether or not it may start another agent all the same."""
        if self._failures >= FREE_FAILURES:
            return Trouble.CRASHES
        if self._reserve_bytes and self._available_bytes() < self._reserve_bytes:
            return Trouble.MEMORY
        return None

    def room(self, starting: int) -> int | None:
        """How many more agents may be started, while so many are; None: as many as there are slots."""
        trouble = self.trouble()
        if trouble is Trouble.CRASHES and self._now() >= self._rests_until:
            return max(0, 1 - starting)  # one shows whether it is mended
        return 0 if trouble else None

    def started(self, agent_id: str) -> None:
        """An agent was started."""
        self._tried.add(agent_id)

    def failed(self, agent_id: str, *, was_ready: bool = False) -> None:
        """An agent ended too early. Those that were starting together fail together, for one cause."""
        if agent_id not in self._tried:
            return
        self._failures += 1
        self._doubts_ready = was_ready
        self._tried.clear()
        if self._failures >= FREE_FAILURES:
            rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0 ** (self._failures - FREE_FAILURES))
            # Jitter: hosts that got the same broken code do not try at the same moment.
            self._rests_until = self._now() + rest * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load

    def ended(self, agent_id: str) -> None:
        """An agent ended, for whatever cause."""
        self._tried.discard(agent_id)

    def ready(self, agent_ids: Collection[str], *, steady_ids: Collection[str] = ()) -> None:
        """These are ready, and some steady; if one was started since the last failure, what failed is mended."""
        if not self._tried.isdisjoint(steady_ids if self._doubts_ready else agent_ids):
            self._failures, self._doubts_ready = 0, False
