"""The parts of a running house, and what is done to them."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

import psutil
import redis

from backend.common.launcher_socket import LauncherError, ask
from backend.local.supervision import _ask
from tests.acceptance.house import House
from tests.waiting import wait_until

PARTS = (
    "api",
    "worker main",
    "worker child",
    "beat",
    "launcher",
    "redis",
    "livekit",
    "agent",
    "programs",
    "host",
)
"""``programs``: all that supervisord runs but LiveKit, at once. ``host``: every process there is, this one excepted."""
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
FROZEN_SECONDS = 20.0
VARIABLES = {
    "AGENT_BOT": "tone",
    "PREWARM_POOL_SIZE": "2",
    "PREWARM_POOL_MAX": "2",
    "MAX_BOTS": "16",
    # Longer than anything is frozen: a session is to outlive the fault, and no limit is to hide that it did not.
    "BOT_STARTUP_TIMEOUT": "90",
    "NOBODY_CAME": "120",
    "DRAIN_TIMEOUT": "60",
    "LOG_LEVEL": "INFO",
}
TURN_SECONDS = 45.0
"""How long everything may take to be well again between two faults."""


class ChaosHouse(House):
    """The whole product, whose parts can be found and hit."""

    def __init__(self) -> None:
        super().__init__(**VARIABLES)

    def kept(self) -> dict[str, Any]:
        """The secrets and ports of its servers."""
        kept: dict[str, Any] = json.loads((self.run_dir / "kept.json").read_text())
        return kept

    @property
    def redis(self) -> Any:
        """A connection to its Redis. Any: redis-py types every answer for both settings of decode_responses."""
        kept = self.kept()
        url = f"redis://:{kept['redis_password']}@127.0.0.1:{kept['ports']['redis']}/0"
        return redis.Redis.from_url(url, decode_responses=True, socket_timeout=5)

    def programs(self) -> dict[str, int]:
        """What supervisord runs now, and under which pids."""
        return {
            one["name"]: one["pid"] for one in _ask(self.run_dir / "supervisor.sock") if one["statename"] == "RUNNING"
        }

    def launched(self) -> dict[str, int]:
        """The agents that the launcher knows, and their pids; empty while it does not answer."""
        try:
            asked = ask(self.run_dir / "house" / "launcher.sock", {"do": "status"}, timeout_seconds=3)
            status: Any = asyncio.run(asked)
        except LauncherError:
            return {}
        return {row["agent_id"]: row["pid"] for row in status["agents"]}

    def targets(self, part: str, agents: Iterable[int]) -> list[int]:
        """The processes of a part; of all agents only these."""
        if part == "agent":
            return list(agents)
        if part == "host":
            return [process.pid for process in self.processes()]
        programs = self.programs()
        if part == "programs":
            named = [pid for name, pid in programs.items() if name != "livekit"]
            return named + _children(programs["worker"])
        if part == "worker child":
            return _children(programs["worker"])[:1]
        return [programs[part.removesuffix(" main")]]

    def crash(self) -> None:
        """Lose every process that is left, and start anew."""
        self.lose_power()
        self.start()

    def is_well(self) -> bool:
        """Whether everything runs, the pool is full and nobody calls."""
        try:
            sessions = self.get("/stats")["sessions"]
            is_quiet = not any(sessions[state] for state in ("waiting", "assigned", "live"))
            return is_quiet and self.is_warm() and self.get("/health")["status"] == "ok" and len(self.programs()) == 6
        except (OSError, KeyError, ValueError):
            return False

    def become_well(self) -> bool:
        """Wait until it is; else start it anew and say False."""
        with contextlib.suppress(TimeoutError):
            wait_until(self.is_well, timeout=TURN_SECONDS)
            return True
        with contextlib.suppress(AssertionError):
            self.stop()
        self.start()
        return False


async def hit(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to all of them; those that are frozen go on after FROZEN_SECONDS."""
    at = time.monotonic()
    known = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    for process in known:
        _send(process, number)
    if number is signal.SIGSTOP:
        await asyncio.sleep(FROZEN_SECONDS - (time.monotonic() - at))  # this is the fault, not a wait for something
        for process in known:
            _send(process, signal.SIGCONT)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if process.is_running():
            os.kill(process.pid, number)


def _children(pid: int) -> list[int]:
    return [process.pid for process in psutil.Process(pid).children()]
