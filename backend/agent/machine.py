"""What this host may use: cores and memory, as the kernel and, in a container, its cgroup (version 2) allow."""

import os
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def cores(folders: list[Path] | None = None) -> int:
    """How many cores this process may use, at least 1: by its affinity, and by the CPU quota of its container."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cgroups(folders) if (quota := _quota(folder)) is not None]
    return max(1, int(min([float(usable), *quotas])))


def available_bytes(folders: list[Path] | None = None) -> int:
    """What can still be used before the machine swaps or the container's limit is reached."""
    left = [left for folder in _cgroups(folders) if (left := _memory_left(folder)) is not None]
    return max(0, min([psutil.virtual_memory().available, *left]))


def _cgroups(folders: list[Path] | None) -> list[Path]:
    """The folders whose limits count: that of our own cgroup and all above it; none without version 2."""
    if folders is not None:
        return folders
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return []
    own = next((CGROUPS / line[3:].strip("/") for line in lines if line.startswith("0::")), CGROUPS)
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(CGROUPS)]


def _quota(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _memory_left(folder: Path) -> int | None:
    """The smaller limit less what is used; the copies of files that would be dropped first do not count."""
    limits = [int(limit) for name in ("memory.max", "memory.high") if (limit := _read(folder / name)).isdigit()]
    used = _read(folder / "memory.current")
    if not limits or not used.isdigit():
        return None
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    return min(limits) - int(used) + int(stat.get("inactive_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the root has no limits, and an older kernel none of these files
        return ""
