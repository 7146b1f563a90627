"""One agent process: who it is, the files it leaves, its signals and its end.

A process is named by (boot id, pid, start time, nonce): a pid alone comes back. Each agent keeps its state in
``<host folder>/agents/<agent id>.json`` and may leave last words in ``<agent id>.exit``, until its exit is reported.
"""

import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import psutil
from loguru import logger

from backend.agent import children
from backend.common.contract import Agent, EndReason
from backend.common.settings import CommonSettings

TERM_SECONDS = 2.0
"""From SIGTERM to SIGKILL. Goodbyes come by inbox: a signal only has to leave the room."""
LATE_SECONDS = 2.5
"""Past its deadline an agent ends itself, then its watchdog does (2 s), then the launcher."""

_HAS_PROC = Path("/proc/self/stat").exists()
_HAS_PIDFD = hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")


@dataclass(frozen=True, kw_only=True)
class State:
    """What an agent's state file says; written by the agent itself."""

    agent_id: str
    nonce: str
    host_id: str
    pid: int
    started: int
    """The process' start time as the kernel counts it, see ``start_time``."""
    boot_id: str
    spawned_at: float
    """Unix seconds."""
    deadline: float | None = None
    """Unix seconds; None until it has a session."""

    @property
    def agent(self) -> Agent:
        """The agent that this is the state of."""
        return Agent(id=self.agent_id, nonce=self.nonce, host_id=self.host_id, pid=self.pid)

    def is_running(self) -> bool:
        """Whether that very process lives; another one that has its pid does not count."""
        return self.boot_id == boot_id() and start_time(self.pid) == self.started

    def late_in(self, now: float) -> float | None:
        """Seconds until the launcher has to end it, from ``now`` in Unix seconds; None without a deadline."""
        return None if self.deadline is None else self.deadline + LATE_SECONDS - now


@dataclass(frozen=True, kw_only=True)
class LastWords:
    """What a process left about its end; whatever is unknown is None or empty."""

    exit_code: int | None = None
    """Negative for a signal."""
    end_reason: EndReason | None = None
    """Why its session ended, when Redis could not be told."""
    ended_at_ms: int | None = None
    """When that was, in ms of Redis' clock."""
    error: str = ""
    """What it died of: kind and place, never a message, which may quote a secret."""


@cache
def boot_id() -> str:
    """Name this boot of this machine."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(int(psutil.boot_time()))


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it does not live, as a zombie."""
    if not _HAS_PROC:
        return _start_time_without_proc(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second one when it goes while we read
        return None
    # The second field is the program's name in parentheses, and a name may hold anything.
    state, *fields = stat[stat.rindex(")") + 2 :].split()
    return None if state in "ZX" else int(fields[18])


def _start_time_without_proc(pid: int) -> int | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 100)
    except psutil.NoSuchProcess:
        return None


def write_state(settings: CommonSettings, agent: Agent) -> None:
    """Write the calling process' state file: the first thing that an agent does."""
    state = State(
        agent_id=agent.id,
        nonce=agent.nonce,
        host_id=agent.host_id,
        pid=os.getpid(),
        started=start_time(os.getpid()) or 0,
        boot_id=boot_id(),
        spawned_at=time.time(),
    )
    _write(_path(settings, agent.id, "json"), asdict(state))


def write_deadline(settings: CommonSettings, agent_id: str, deadline: float | None) -> bool:
    """Tell the launcher until when (Unix seconds) the agent may live; False for an agent that has none."""
    state = _read_state(_path(settings, agent_id, "json"))
    if state:
        _write(_path(settings, agent_id, "json"), asdict(replace(state, deadline=deadline)))
    return state is not None


def leave_last_words(settings: CommonSettings, agent_id: str, said: LastWords) -> None:
    """Add to what the next launcher will know of this agent's end; None and '' leave what was said before."""
    news = {name: value for name, value in asdict(said).items() if value not in (None, "")}
    _write(_path(settings, agent_id, "exit"), asdict(read_last_words(settings, agent_id)) | news)


def read_last_words(settings: CommonSettings, agent_id: str) -> LastWords:
    """Read what was left; empty words when nothing was, or nothing legible."""
    fields = _read(_path(settings, agent_id, "exit"))
    try:
        code, reason, ended_at_ms = (fields.get(name) for name in ("exit_code", "end_reason", "ended_at_ms"))
        return LastWords(
            exit_code=None if code is None else int(str(code)),
            end_reason=EndReason(str(reason)) if reason else None,
            ended_at_ms=None if ended_at_ms is None else int(str(ended_at_ms)),
            error=str(fields.get("error") or ""),
        )
    except ValueError:
        logger.warning("last words are not legible", agent_id=agent_id)
        return LastWords()


def read_states(settings: CommonSettings) -> list[State]:
    """Read the state files of this host's agents, dead ones too; one that is not legible is removed."""
    found = []
    for path in (settings.host_dir / "agents").glob("*.json"):
        state = _read_state(path)
        if state:
            found.append(state)
        elif path.exists():
            logger.warning("a state file is not legible and was removed", path=path.name)
            path.unlink(missing_ok=True)
    return found


def forget(settings: CommonSettings, agent_id: str) -> None:
    """Remove an agent's files. The state goes last: while it is there, its exit will be reported (again)."""
    unfinished = (settings.host_dir / "agents").glob(f".{agent_id}.*")  # it was killed while it wrote
    for path in (*unfinished, _path(settings, agent_id, "exit"), _path(settings, agent_id, "json")):
        path.unlink(missing_ok=True)


def _path(settings: CommonSettings, agent_id: str, suffix: str) -> Path:
    return settings.host_dir / "agents" / f"{agent_id}.{suffix}"


def _write(path: Path, fields: Mapping[str, object]) -> None:
    """Replace the file in one step: a reader sees the old one or the new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(fields, file)
    fresh.replace(path)


def _read(path: Path) -> dict[str, object]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _read_state(path: Path) -> State | None:
    fields = _read(path)
    try:
        deadline = fields.get("deadline")
        return State(
            agent_id=str(fields["agent_id"]),
            nonce=str(fields["nonce"]),
            host_id=str(fields["host_id"]),
            pid=int(str(fields["pid"])),
            started=int(str(fields["started"])),
            boot_id=str(fields["boot_id"]),
            spawned_at=float(str(fields["spawned_at"])),
            deadline=None if deadline is None else float(str(deadline)),
        )
    except (KeyError, ValueError):
        return None


class AgentProcess:
    """A living agent, as its launcher holds it: a child, or one that an earlier launcher left."""

    def __init__(self, agent: Agent, *, started: int | None, spawned_at: float, is_child: bool) -> None:
        """Take hold of the process; raises ProcessLookupError when the pid is free."""
        self.agent = agent
        self.spawned_at = spawned_at
        self.pidfd = os.pidfd_open(agent.pid) if _HAS_PIDFD else None
        """Names the process for good, and becomes readable when it has exited."""
        self.kill_at: float | None = None
        """When SIGKILL is due, by the monotonic clock; None while it may live."""
        self._started, self._is_child = started, is_child

    @classmethod
    def of_child(cls, agent: Agent, pid: int) -> "AgentProcess":
        """Take hold of a child that was just started; raises OSError, the child being ended, when that cannot be."""
        try:
            return cls(replace(agent, pid=pid), started=start_time(pid), spawned_at=time.time(), is_child=True)
        except OSError:  # no descriptor left
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    @classmethod
    def adopt(cls, state: State) -> "AgentProcess | None":
        """Take over what an earlier launcher left; None when that process has exited."""
        if not state.is_running():
            return None
        try:
            own = children.is_child(state.pid)  # it was renewed meanwhile, and has still to be waited for
            found = cls(state.agent, started=state.started, spawned_at=state.spawned_at, is_child=own)
        except ProcessLookupError:
            return None
        # Only now is it pinned: the pid may have changed hands since we looked.
        if state.is_running():
            return found
        found.close()
        return None

    def has_exited(self) -> bool:
        """Ask the kernel; for systems whose selectors cannot wait for a process."""
        return start_time(self.agent.pid) != self._started

    def end(self) -> None:
        """Begin the kill ladder; again changes nothing."""
        if self.kill_at is None:
            self._send(signal.SIGTERM)
            self.kill_at = time.monotonic() + TERM_SECONDS

    def press(self, now: float) -> None:
        """Take the ladder's next step when its time has come; ``now`` by the monotonic clock."""
        if self.kill_at is not None and now >= self.kill_at:
            self._send(signal.SIGKILL)  # its group goes with it, see reap
            self.kill_at = now + TERM_SECONDS

    def reap(self) -> int | None:
        """End what the exited process left in its group.

        Returns its exit code, negative for a signal; None when it was not our child.
        """
        # Before the wait: until then the kernel gives its pid, and so its group's number, to nobody else.
        kill_group(self.agent.pid, self._started)
        self.close()
        if not self._is_child:
            return None
        return os.waitstatus_to_exitcode(os.waitpid(self.agent.pid, 0)[1])

    def close(self) -> None:
        """Let go of the process."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def _send(self, number: signal.Signals) -> None:
        try:
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, number)
            elif not self.has_exited():
                os.kill(self.agent.pid, number)
        except ProcessLookupError:
            return  # it has exited: what we wanted


def kill_group(pid: int, started: int | None) -> None:
    """Kill who is left in a group. Its number stays taken by them: it is ours unless another process has that pid."""
    if pid > 1 and start_time(pid) in (None, started):  # 0 would be our own group
        with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says so by the second one
            os.killpg(pid, signal.SIGKILL)
