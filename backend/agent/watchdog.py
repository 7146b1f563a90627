"""Ends a process whose event loop is stuck: a timer in C that needs no interpreter lock.

The loop itself moves the timer; a loop that hangs lets it run out. Behind it, for every bot and whatever it does,
stands the kernel's own alarm. Nothing in a process can end it while it is stopped by a signal: that is left to the
launcher.
"""

import asyncio
import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

STUCK_SECONDS = 3.0
"""A loop that did not run for so long has lost its heartbeat too, and a successor is on its way."""
OVERDUE_SECONDS = 2.0
"""How long an agent may outlive the moment by which it must be gone."""
MOVE_SECONDS = 1.0
"""Moving the timer makes a thread, 16 us: often enough to be early, seldom enough to cost nothing."""


def be_gone_in(seconds: float) -> None:
    """Let the kernel end this process after so long, whatever it does then; a later call moves the moment."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))  # SIGALRM, which nobody handles


class Watchdog:
    """The one timer of this process; a stuck loop's stack goes to the end of ``stack_file``, if that is writable."""

    def __init__(self, stack_file: Path) -> None:
        # Never stderr: under a launcher that is a pipe, and a full pipe holds the watchdog for ever.
        try:
            self._file = stack_file.open("a", encoding="utf-8")
        except OSError:
            self._file = Path(os.devnull).open("a", encoding="utf-8")  # noqa: SIM115  # open as long as the timer runs

    def arm(self, seconds: float) -> None:
        """End this process with code 1 after ``seconds``, unless the timer is moved before."""
        faulthandler.dump_traceback_later(max(seconds, 0.1), exit=True, file=self._file)

    def disarm(self) -> None:
        """Let this process live as long as it likes."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()

    async def stay_watched(self, gone_by: Callable[[], float | None]) -> None:
        """Move the timer each second; ``gone_by`` is on the clock of time.monotonic(), None: not known yet."""
        while True:
            self.arm(seconds_left(gone_by(), time.monotonic()))
            await asyncio.sleep(MOVE_SECONDS)


def seconds_left(gone_by: float | None, now: float) -> float:
    """Return how long the timer runs from ``now``."""
    if gone_by is None:
        return STUCK_SECONDS
    return min(STUCK_SECONDS, gone_by + OVERDUE_SECONDS - now)
