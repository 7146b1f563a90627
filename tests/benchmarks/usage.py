"""What a process used of this machine: CPU time, wake-ups, memory; read from /proc, so Linux only."""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One process at one moment; sums of all of its threads."""

    at: float
    """On the clock of time.monotonic()."""
    cpu_seconds: float
    """User and system, of threads that have ended too."""
    main_seconds: float
    """Of the main thread, which runs the event loop."""
    children_seconds: float
    """Of the processes that it started and that still run."""
    switches: int
    """Context switches, voluntary or not."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """One process between two moments, and its memory at the later one."""

    cpu: float
    """Per cent of a core; so are the next two."""
    main: float
    children: float
    switches_per_second: float
    threads: int
    own_mib: float
    """Memory that nobody shares (USS)."""
    share_mib: float
    """With its share of what is shared (PSS)."""


def read(process: psutil.Process) -> Reading:
    """Look at a process now."""
    times = process.cpu_times()
    main = next(thread for thread in process.threads() if thread.id == process.pid)
    children = [child.cpu_times() for child in process.children(recursive=True)]
    return Reading(
        at=time.monotonic(),
        cpu_seconds=times.user + times.system,
        main_seconds=main.user_time + main.system_time,
        children_seconds=sum(child.user + child.system for child in children),
        switches=sum(_switches(task) for task in Path(f"/proc/{process.pid}/task").iterdir()),
    )


def since(before: Reading, process: psutil.Process) -> Usage:
    """Say what a process used since ``before``."""
    now = read(process)
    seconds = now.at - before.at
    memory = process.memory_full_info()
    return Usage(
        cpu=100 * (now.cpu_seconds - before.cpu_seconds) / seconds,
        main=100 * (now.main_seconds - before.main_seconds) / seconds,
        children=100 * (now.children_seconds - before.children_seconds) / seconds,
        switches_per_second=(now.switches - before.switches) / seconds,
        threads=process.num_threads(),
        own_mib=memory.uss / 2**20,
        share_mib=memory.pss / 2**20,
    )


def tree_mib(process: psutil.Process) -> float:
    """Memory of a process and all that it started, what they share counted once (PSS)."""
    tree = [process, *process.children(recursive=True)]
    return float(sum(member.memory_full_info().pss for member in tree) / 2**20)


def _switches(task: Path) -> int:
    try:
        lines = (task / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # a thread that ended while we looked
        return 0
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
