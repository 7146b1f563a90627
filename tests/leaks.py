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

_CELERY = re.compile(r"_kombu\.binding\..+|unacked(_index|_mutex)?|control|celery|host\..+|.+\.pidbox|celeryev\..+")
"""Celery's own keys in the broker's database; it gives them no TTL."""


def mark_descendants() -> None:
    """Mark this process, once, so that whatever it starts can be found."""
    os.environ[MARK] = _run


def may_stay(pid: int) -> None:
    """Let a process outlive the test that started it: a server that is shared by all tests."""
    _may_stay.add(pid)


def leaked_keys(client: redis.Redis, broker: redis.Redis) -> list[str]:
    """Every key that nobody owns, or that would stay for ever without a reason in ``keys.TABLE``."""
    known = re.compile("|".join(_as_expression(key.pattern) for key in TABLE))
    stays = re.compile("|".join(_as_expression(key.pattern) for key in TABLE if key.stays))
    complaints = []
    for key in client.scan_iter(count=1000):
        name = _without_hash_tag(key)
        if not known.fullmatch(name):
            complaints.append(f"{name}: not in keys.TABLE")
        # -2 would be: it went while we looked.
        elif client.pttl(key) == -1 and not stays.fullmatch(name):
            complaints.append(f"{name}: no TTL")
    foreign = [name for name in broker.scan_iter(count=1000) if not _CELERY.fullmatch(name)]
    return complaints + [f"{name}: in the broker's database, not Celery's" for name in foreign]


def processes() -> dict[int, psutil.Process]:
    """Every process that this one started, at any remove, and that may not stay."""
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        # Foreign or just gone: not ours.
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == _run:
                found[process.pid] = process
    return {pid: process for pid, process in found.items() if pid not in _may_stay}


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


def _as_expression(pattern: str) -> str:
    return re.sub(r"\\\{\w+\\\}", ".+", re.escape(pattern))


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
