"""A program that takes new code without going away: on SIGHUP it executes itself anew, in the same process.

The process keeps its id, so its supervisor sees no end and its children stay its own, and it keeps what it must not
let go of for a moment: a lock, a listening socket. A child tries the new code first: code that cannot start changes
nothing.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

CHECK = "check"
"""The argument with which a program only tries whether it could start."""
CHECK_SECONDS = 180.0
"""Longer than any start was seen to take, on a machine that was full; what takes longer has failed."""
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def is_check() -> bool:
    """Whether this process is only to try whether the program could start."""
    return sys.argv[1:] == [CHECK]


class Trial:
    """A child that starts the program as it stands on disk now, up to where it would begin to work."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(_command(CHECK), stdin=subprocess.DEVNULL, start_new_session=True)
        self._until = time.monotonic() + CHECK_SECONDS

    @property
    def pid(self) -> int:
        """The child."""
        return self._process.pid

    def passed(self) -> bool | None:
        """Whether the new code starts; None while that is not known."""
        code = self._process.poll()
        if code is None and time.monotonic() >= self._until:
            self.stop()
            return False
        return None if code is None else code == 0

    def stop(self) -> None:
        """End the child; again changes nothing."""
        self._process.kill()
        self._process.wait()


def hold_stops() -> None:
    """Let signals to stop wait, across ``execute_anew``, until ``hear_stops``: none may get lost between two codes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)


def hear_stops() -> None:
    """Let through the signals that came meanwhile; call it once they have handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def execute_anew(keep: Iterable[int]) -> NoReturn:
    """Become the program as it stands on disk, with these descriptors open."""
    for descriptor in keep:
        os.set_inheritable(descriptor, True)
    command = _command()
    os.execv(command[0], command)  # noqa: S606  # ourselves, as we were started


def inherited(is_it: Callable[[int], bool]) -> int | None:
    """Find what was kept open, and keep it from this process' own children; None when there is no such descriptor."""
    for name in os.listdir("/dev/fd"):
        if int(name) > 2 and _holds(int(name), is_it):
            os.set_inheritable(int(name), False)
            return int(name)
    return None


def _holds(descriptor: int, is_it: Callable[[int], bool]) -> bool:
    try:
        return is_it(descriptor)
    except OSError:  # of another kind, or the one that listed the folder
        return False


def _command(*words: str) -> list[str]:
    return [sys.executable, *sys.orig_argv[1:], *words]
