"""What a test may not leave behind: keys, processes, descriptors."""

import contextlib
import os
import re
import uuid

import psutil
import redis

from backend.common.keys import TABLE
from tests.waiting import wait_until

MARK = "GREENROOM_TEST_RUN"
"""In the environment of everything that a test starts: also what its parent left behind is found by it."""

_run = uuid.uuid4().hex
_may_stay: set[int] = set()

_CELERY = re.compile(
    r"celery:(_kombu\.binding(_permanent)?\..+|_kombu\.binding_deadlines|unacked(_index|_mutex)?|control|host\..+|.+\.pidbox|celeryev\..+)"
)
"""Celery's own keys in the broker's database, with our prefix; it gives them no TTL."""


def any_of(patterns: list[str]) -> re.Pattern[str]:
    """An expression for names like ``session:{id}``."""
    return re.compile("|".join(re.sub(r"\\\{\w+\\\}", ".+", re.escape(pattern)) for pattern in patterns))


_KNOWN = any_of([key.pattern for key in TABLE])
_STAYS = any_of([key.pattern for key in TABLE if key.stays])


def mark_descendants() -> None:
    """Mark this process, once, so that whatever it starts can be found."""
    os.environ[MARK] = _run


def may_stay(pid: int) -> None:
    """Let a process, and what it starts, outlive the test that started it: a server that several tests share."""
    _may_stay.add(pid)


def of_run(mark: str) -> list[psutil.Process]:
    """Every process that has this value of MARK in its environment; zombies have none."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # foreign or just gone: not ours
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def leaked_keys(client: redis.Redis) -> list[str]:
    """Every key that nobody owns, or that would stay for ever without a reason in ``keys.TABLE``."""
    found = list(client.scan_iter(count=1000))
    pipeline = client.pipeline(transaction=False)
    for key in found:
        pipeline.pttl(key)
    complaints = []
    for key, ttl in zip(found, pipeline.execute(), strict=True):
        name = _without_hash_tag(key)
        if not _KNOWN.fullmatch(name):
            complaints.append(f"{name}: not in keys.TABLE")
        elif ttl == -1 and not _STAYS.fullmatch(name):  # -2 would be: it went while we looked
            complaints.append(f"{name}: no TTL")
    return complaints


def foreign_keys(broker: redis.Redis) -> list[str]:
    """Every key in Celery's database that is not Celery's."""
    names = [name for name in broker.scan_iter(count=1000) if not _CELERY.fullmatch(name)]
    return [f"{name}: in the broker's database, not Celery's" for name in names]


def processes() -> dict[int, psutil.Process]:
    """Every process that this one started, at any remove, and that may not stay."""
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    found |= {process.pid: process for process in of_run(_run) if process.pid != os.getpid()}
    return {pid: process for pid, process in found.items() if not _may_all_stay(process)}


def _may_all_stay(process: psutil.Process) -> bool:
    try:
        return bool(_may_stay & {process.pid, *(parent.pid for parent in process.parents())})
    except psutil.NoSuchProcess:
        return True  # it went while we looked


def leaked_processes(before: dict[int, psutil.Process], *, timeout: float = 3.0) -> list[str]:
    """Every process that is new since ``before`` and does not end by itself in ``timeout``; it is killed."""

    def new() -> list[psutil.Process]:
        return [process for pid, process in processes().items() if before.get(pid) != process]

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not new(), timeout=timeout)
    return [_end(process) for process in new()]


def descriptors() -> dict[int, str]:
    """This process' open descriptors and what they lead to."""
    found = {}
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the one that lists the folder is closed by now
            found[int(name)] = f"{os.fstat(int(name)).st_ino} {_target(name)}"
    return found


def leaked_descriptors(before: dict[int, str], *, timeout: float = 2.0) -> list[str]:
    """Every descriptor that was opened since ``before`` and is not closed in ``timeout``."""

    def new() -> list[str]:
        return [f"{number}: {target}" for number, target in descriptors().items() if before.get(number) != target]

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not new(), timeout=timeout)
    return new()


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/dev/fd/{descriptor}")
    except OSError:  # a system that has no such links
        return ""


def _without_hash_tag(key: str) -> str:
    """The name as the table has it: a Redis Cluster needs a tag in front of each."""
    return re.sub(r"^\{\w+\}:", "", key)


def _end(process: psutil.Process) -> str:
    try:
        what = f"{process.pid} {process.status()}: {' '.join(process.cmdline())[:200]}"
        process.kill()
    except psutil.NoSuchProcess:
        return f"{process.pid}: ended late"
    return what
