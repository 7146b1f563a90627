"""The children of a launcher that was renewed: the kernel knows them, its memory does not."""

import contextlib
import os
import signal
from collections.abc import Collection

import psutil


def is_child(pid: int) -> bool:
    """Whether this process is the parent: then it must wait for it, and learns its exit code."""
    try:
        return psutil.Process(pid).ppid() == os.getpid()
    except psutil.NoSuchProcess:
        return False


def reap_unknown(known: Collection[int]) -> dict[int, int]:
    """Reap the exited children that nobody waits for, and end what they left in their groups.

    Returns their exit codes by pid, negative for a signal. ``known`` are waited for by whoever knows them.
    """
    codes: dict[int, int] = {}
    if not hasattr(os, "waitid"):  # macOS, where a renewed launcher may keep a zombie until it ends
        return codes
    with contextlib.suppress(ChildProcessError):  # there are none
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid not in known:
            # Before the wait: until then the kernel gives its number to nobody else.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(found.si_pid, signal.SIGKILL)
            codes[found.si_pid] = os.waitstatus_to_exitcode(os.waitpid(found.si_pid, 0)[1])
    return codes
