"""Watches an event loop: a stall is logged with the stack of what held the loop up.

The loop notes when it begins to work and when it waits again, which costs a fraction of a microsecond
a round and no wake-up. A thread looks at that note: while the loop works for long, it takes the
stack of the loop's thread. Frames only, never the values of variables.

    stalls.run(serve())                                  # instead of asyncio.run
    StallMonitor(on_lag=histogram.observe).new_loop()    # for whoever runs loops by hand
"""

import asyncio
import contextlib
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, NamedTuple, TypeVar

from loguru import logger

STALL_SECONDS = 0.1
"""A caller hears a pause of this length; nothing in our loops has a reason to work for so long at a stretch."""
LOOK_SECONDS = 0.05
"""At most half a stall: then each one is looked at while it lasts."""
GLANCE_SECONDS = 1.0
"""Between two looks where the processor time of 20 a second (0.15 % of a core) is too much: in warm agents."""
STUCK_SECONDS = 2.0
"""A stall that may never end is logged once while it lasts: an agent that is silent for 6 s is replaced."""
QUIET_SECONDS = 10.0
"""At most one ended stall in so long is logged; the next line says how many were left out."""
LAG_SECONDS = 1.0
"""How often the observer is told the longest time that the loop was busy at a stretch."""
DEEPEST = 12
"""Frames of a stack that are logged, the innermost first."""
STOP_SECONDS = 1.0

Result = TypeVar("Result")


class Stall(NamedTuple):
    """A stretch of work that was too long."""

    began_at: float
    """By the monotonic clock."""
    seconds: float


class StallMonitor:
    """Watches the loop that ``new_loop`` makes. One for each loop, made after any fork: it runs a thread."""

    def __init__(self, *, on_lag: Callable[[float], None] | None = None, is_calm: bool = False) -> None:
        """Get ready.

        ``on_lag`` is told each second, in another thread, for how many seconds at most the loop was busy at a
        stretch. ``is_calm``: look once a second, and so miss most stacks, until ``look_closely``.
        """
        self._on_lag = on_lag
        self._look_seconds = GLANCE_SECONDS if is_calm else LOOK_SECONDS
        self._pace = _Pace()
        self._is_over = False
        self._wake: SimpleQueue[None] = SimpleQueue()  # half the price of an Event, which would be woken as often
        self._thread = threading.Thread(target=self._watch, name="stalls", daemon=True)
        self._stack, self._stack_of, self._stuck = "", 0.0, 0.0
        self._logged_at, self._left_out = -QUIET_SECONDS, 0
        self._lag_at = time.monotonic() + LAG_SECONDS

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Make the loop; closing it ends the watch."""
        return _WatchedLoop(self, self._pace)

    def watch(self) -> None:
        """Begin: the calling thread runs the loop from now on. Again changes nothing."""
        if not self._pace.thread_id:
            self._pace.thread_id = threading.get_ident()
            self._thread.start()

    def look_closely(self) -> None:
        """From now on look often enough to see each stall."""
        self._look_seconds = LOOK_SECONDS
        self._wake.put(None)

    def stop(self) -> None:
        """Log what is not logged yet, and end the thread."""
        self._is_over = True
        self._wake.put(None)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _watch(self) -> None:
        while not self._is_over:
            with contextlib.suppress(Empty):  # the time to look has come
                self._wake.get(timeout=self._look_seconds)
            self._look(time.monotonic())

    def _look(self, now: float) -> None:
        began_at = self._pace.busy_since
        if began_at is not None and now - began_at >= LOOK_SECONDS:
            self._look_at_stack(began_at, now)
        while self._pace.stalls:
            self._log(self._pace.stalls.popleft(), now)
        if self._on_lag and now >= self._lag_at:
            self._lag_at = now + LAG_SECONDS
            self._on_lag(self._pace.take_longest(now))

    def _look_at_stack(self, began_at: float, now: float) -> None:
        stack = describe(sys._current_frames().get(self._pace.thread_id))
        if self._pace.busy_since != began_at:
            return  # the loop went on meanwhile: what we saw is something else
        self._stack, self._stack_of = stack, began_at
        if now - began_at >= STUCK_SECONDS and self._stuck != began_at:
            self._stuck = began_at
            logger.warning("the event loop is stuck", seconds=round(now - began_at, 3), stack=stack)

    def _log(self, stall: Stall, now: float) -> None:
        if now - self._logged_at < QUIET_SECONDS:
            self._left_out += 1
            return
        is_seen = self._stack_of == stall.began_at
        # Where this thread did not run either, the machine is short of processors, and no line of ours is to blame.
        level, stack = ("WARNING", self._stack) if is_seen else ("INFO", "not seen")
        fields = {"seconds": round(stall.seconds, 3), "left_out": self._left_out, "stack": stack}
        logger.bind(**fields).log(level, "the event loop stalled")
        self._logged_at, self._left_out = now, 0


def run(
    work: Coroutine[Any, Any, Result], *, on_lag: Callable[[float], None] | None = None, is_calm: bool = False
) -> Result:
    """Run a program's main coroutine, as ``asyncio.run`` does, in a loop that is watched."""
    with asyncio.Runner(loop_factory=StallMonitor(on_lag=on_lag, is_calm=is_calm).new_loop) as runner:
        return runner.run(work)


def look_closely() -> None:
    """Let the running loop be looked at closely from now on, if it is a watched one."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, _WatchedLoop):
        loop.monitor.look_closely()


def describe(frame: FrameType | None) -> str:
    """Name the frames, the innermost first: file, line and function."""
    places: list[str] = []
    while frame and len(places) < DEEPEST:
        path = Path(frame.f_code.co_filename)
        places.append(f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(places)


class _Pace(selectors.DefaultSelector):
    """Where the loop waits; between two waits it works."""

    def __init__(self) -> None:
        super().__init__()
        self.thread_id = 0
        self.busy_since: float | None = None
        """By the monotonic clock; None while the loop waits or does not run."""
        self.stalls: deque[Stall] = deque(maxlen=1_000)
        self._longest = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, and note it."""
        self.rest()
        ready = super().select(timeout)
        self.busy_since = time.monotonic()
        return ready

    def rest(self) -> None:
        """Note that the loop's work is done for now."""
        began_at, self.busy_since = self.busy_since, None
        if began_at is None:
            return
        seconds = time.monotonic() - began_at
        self._longest = max(self._longest, seconds)
        if seconds >= STALL_SECONDS:
            self.stalls.append(Stall(began_at, seconds))

    def take_longest(self, now: float) -> float:
        """Give the longest stretch since the last time, the one that lasts included."""
        longest, self._longest = self._longest, 0.0
        began_at = self.busy_since
        return longest if began_at is None else max(longest, now - began_at)


class _WatchedLoop(asyncio.SelectorEventLoop):
    """The loop as asyncio has it, over a selector that keeps the time."""

    def __init__(self, monitor: StallMonitor, pace: _Pace) -> None:
        super().__init__(pace)
        self.monitor, self._pace = monitor, pace

    def run_forever(self) -> None:
        """Run until it is stopped; what the thread does between two runs is no stall."""
        self.monitor.watch()
        try:
            super().run_forever()
        finally:
            self._pace.rest()

    def close(self) -> None:
        """Close the loop, and end the watch."""
        self.monitor.stop()
        super().close()
