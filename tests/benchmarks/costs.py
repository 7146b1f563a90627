"""What a tree of processes costs: memory as the kernel shares it out, and time on the processor."""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

MB = 1024 * 1024
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one process, in megabytes."""

    pss: float
    """Its own, and its share of what it shares."""
    uss: float
    """Its own: what its end would free."""


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that descends from it."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory(pid: int) -> Memory | None:
    """Its memory; None when it is gone."""
    with contextlib.suppress(psutil.Error, OSError):
        info = psutil.Process(pid).memory_full_info()
        return Memory(pss=info.pss / MB, uss=info.uss / MB)
    return None


def pss(processes: Iterable[psutil.Process]) -> float:
    """Megabytes of all of them together; what they share is counted once, between them."""
    found = (memory(process.pid) for process in processes)
    return sum(each.pss for each in found if each)


def cpu_seconds(pid: int) -> float:
    """What a tree has used so far, with those of it that have ended and were waited for."""
    total = 0
    for process in tree(pid):
        with contextlib.suppress(OSError):  # gone meanwhile: its parent has its time
            total += _ticks(process.pid)
    return total * TICK_SECONDS


def started_at(pid: int) -> float:
    """When a process was started, in Unix seconds, to a tick of 10 ms. psutil's own is that of whole seconds."""
    since_boot = int(_fields(pid)[19]) * TICK_SECONDS
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return _fields(pid)[0] not in (b"Z", b"X")
    except OSError:
        return False


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it."""
    try:
        return _fields(pid)[0] == b"T"
    except OSError:
        return False


def _ticks(pid: int) -> int:
    return sum(int(field) for field in _fields(pid)[11:15])  # utime, stime, and those of children that were waited for


def _fields(pid: int) -> list[bytes]:
    """All that follows the name, which may hold spaces."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b") ")[2].split()
