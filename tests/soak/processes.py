"""The processes of a running house, told apart by program; who has lost its parent, who was not waited for."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

SIGNS = {
    "backend.orchestrator.api": "api",
    "celery_app worker": "worker",
    "celery_app beat": "beat",
    "backend.agent.launcher": "launcher",
    "valkey-server": "redis",
    "redis-server": "redis",
    "livekit-server": "livekit",
    "supervisord": "supervisord",
    "backend.local": "make run",
}
"""Programs by what stands in their command."""
AGENT = "agent"
"""A forked agent has the command of its launcher, and a name of its own."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process."""

    pid: int
    parent: int
    program: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All processes of a house at one moment."""

    members: tuple[Member, ...]
    zombies: int
    """Ended, and not waited for by a parent that is ours."""

    def pids(self) -> dict[str, list[int]]:
        """By program; a worker's children apart."""
        found = defaultdict(list)
        for member in self.members:
            found[member.program].append(member.pid)
        return dict(found)

    def orphans(self, adopted: Iterable[int]) -> list[str]:
        """Who has lost its parent, and is no agent that a launcher knows."""
        known = set(adopted)
        parents = {member.pid for member in self.members}
        return [
            f"{member.program} {member.pid}: {member.command[-80:]}"
            for member in self.members
            if member.parent not in parents and member.program != "make run" and member.pid not in known
        ]


def see(processes: Iterable[psutil.Process]) -> Seen:
    """Look at them now."""
    members: dict[int, Member] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it went while we looked
            command = " ".join(process.cmdline())
            program = AGENT if process.name() == AGENT else program_of(command)
            members[process.pid] = Member(pid=process.pid, parent=process.ppid(), program=program, command=command)
    named = tuple(_told_apart(member, members) for member in members.values())
    return Seen(members=named, zombies=_zombies(set(members)))


def program_of(command: str) -> str:
    """The program that runs under this command."""
    return next((program for sign, program in SIGNS.items() if sign in command), "other")


def descriptors(pid: int) -> int:
    """How many files a process has open; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def rss(pid: int) -> float:
    """Megabytes that are mapped, whoever shares them; 0 when it is gone. PSS would fall with each fork that shares."""
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).memory_info().rss) / 2**20
    return 0.0


def _told_apart(member: Member, members: Mapping[int, Member]) -> Member:
    parent = members.get(member.parent)
    if member.program == "worker" and parent and parent.program == "worker":
        return Member(**(vars(member) | {"program": "worker child"}))
    if member.program == "launcher" and parent and parent.program == "launcher":
        return Member(**(vars(member) | {"program": AGENT}))  # it was forked a moment ago
    return member


def _zombies(parents: set[int]) -> int:
    count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            count += process.status() == psutil.STATUS_ZOMBIE and process.ppid() in parents
    return count
