"""The systems that are measured: each answers the same two requests and has the same number of agents warm."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import redis

from backend.common import keys
from backend.local.setup import PEER_PYTHON
from tests.acceptance.house import House
from tests.benchmarks import costs
from tests.livekit_server import LiveKitServer
from tests.valkey_server import free_port
from tests.waiting import wait_until, wait_until_async

WARM = 4
"""Warm agents of each system."""
MOST_AGENTS = 60
"""Of a host: a burst of 50, and the pool."""
START_SECONDS = 90.0
SETTLE_SECONDS = 90.0
QUIET_SECONDS = 0.5
"""Between a full pool and the next call: what the last one left behind has ended."""


@contextmanager
def a_livekit() -> Iterator[tuple[LiveKitServer, int, Path]]:
    """A LiveKit server that all systems share, the port of the API that hears its webhooks, and a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        livekit = LiveKitServer(folder, webhook_url=f"http://127.0.0.1:{port}/livekit/webhook")
        try:
            livekit.start()
            yield livekit, port, folder
        finally:
            livekit.kill()


class System(ABC):
    """One way to give a caller an agent."""

    name: str
    url = ""
    """Of its API."""
    agents_root = 0
    """The process from which its agents descend."""

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until its pool is full."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it; nothing of it is left."""

    @abstractmethod
    def roots(self) -> dict[str, int]:
        """Its programs by name, and their processes."""

    @abstractmethod
    def is_settled(self) -> bool:
        """Whether no call is under way and the pool is full."""

    @abstractmethod
    async def agent_pid(self, session_id: str) -> int:
        """The process that talks in a session."""

    @abstractmethod
    def agents(self) -> list[int]:
        """Every process of an agent, warm or live."""

    def warm(self) -> list[int]:
        """The processes of warm agents, and only of those where the system tells them apart."""
        return self.agents()

    def fork_ms(self) -> dict[int, float]:
        """From the fork to the warm agent, of each one that is warm now, by its process; empty where nobody tells."""
        return {}

    async def settle(self) -> None:
        """Wait until the next call finds what the first one found."""
        asked = lambda: asyncio.to_thread(self.is_settled)  # noqa: E731
        await wait_until_async(asked, timeout=SETTLE_SECONDS, what=f"{self.name} has settled")
        await asyncio.sleep(QUIET_SECONDS)

    def cpu_seconds(self) -> float:
        """What all its programs have used so far."""
        return sum(costs.cpu_seconds(pid) for pid in self.roots().values())

    def cpu_by_program(self) -> dict[str, float]:
        """The same, apart."""
        return {program: costs.cpu_seconds(pid) for program, pid in self.roots().items()}


class Greenroom(System):
    """The whole product, with its own Redis."""

    def __init__(self, name: str, livekit: LiveKitServer, port: int = 0, /, **variables: str) -> None:
        self.name = name
        sizes = {
            "PREWARM_POOL_SIZE": str(WARM),
            "PREWARM_POOL_MAX": str(WARM),
            "MAX_BOTS": str(MOST_AGENTS),
            "LOG_LEVEL": "INFO",
        }
        self.house = House(port, **(sizes | _address(livekit) | variables))
        self.url = self.house.url
        self._roots: dict[str, int] = {}

    def start(self) -> None:
        """Start the house against the LiveKit server that all share."""
        self.house.start()
        for program in ("api", "worker", "beat", "launcher", "redis"):
            self._roots[program] = int(self.house.control("pid", program))
        self.agents_root = self._roots["launcher"]
        wait_until(self.is_settled, timeout=START_SECONDS, what=f"{self.name} is warm")

    def stop(self) -> None:
        """Stop it as Ctrl-C does."""
        self.house.discard()

    def roots(self) -> dict[str, int]:
        """Its programs."""
        return self._roots

    def is_settled(self) -> bool:
        """As /stats says, and with no agent left that is ending."""
        stats = self.house.get("/stats")
        states = Counter(stats["agents"])
        return states["warm"] == WARM == len(self.agents()) and stats["pool"]["starting"] == 0

    def redis(self) -> Any:
        """A client of its Redis."""
        kept = json.loads((self.house.run_dir / "kept.json").read_text())
        url = f"redis://:{kept['redis_password']}@127.0.0.1:{kept['ports']['redis']}/0"
        return redis.Redis.from_url(url, decode_responses=True)

    def warm(self) -> list[int]:
        """As Redis says."""
        return list(self.fork_ms())

    def fork_ms(self) -> dict[int, float]:
        """As the kernel says when, and Redis until when."""
        with self.redis() as client, client.pipeline() as pipe:
            for agent_id in client.zrange(keys.POOL_READY, 0, -1):
                pipe.hmget(keys.agent(agent_id), "pid", "warm_at_ms")
            found = {int(pid): int(warm_at_ms) for pid, warm_at_ms in pipe.execute() if warm_at_ms}
        return {pid: warm_at_ms - costs.started_at(pid) * 1000 for pid, warm_at_ms in found.items()}

    async def agent_pid(self, session_id: str) -> int:
        """As the API says."""
        view: dict[str, Any] = await asyncio.to_thread(self.house.get, f"/orchestrator/session/{session_id}")
        return int(view["agentPid"])

    def agents(self) -> list[int]:
        """The launcher's children; what they start in turn is not asked for."""
        return [child.pid for child in psutil.Process(self.agents_root).children() if costs.is_there(child.pid)]


class Peer(System):
    """livekit-agents: one worker, and a server that hands out tokens."""

    def __init__(self, name: str, livekit: LiveKitServer, folder: Path) -> None:
        self.name = name
        self._livekit = livekit
        self._folder = folder / "peer"
        self._pids = self._folder / "pids"
        self._pids.mkdir(parents=True)
        self._port, self._worker_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._programs: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start both programs; the worker registers once its pool is warm."""
        environment = os.environ | {
            **_address(self._livekit),
            "PORT": str(self._port),
            "PEER_IDLE": str(WARM),
            "PEER_WORKER_PORT": str(self._worker_port),
            "PEER_PIDS": str(self._pids),
        }
        script = Path(__file__).with_name("peer_worker.py")
        self._run("worker", environment, PEER_PYTHON, script, "start")
        self._run("server", environment, sys.executable, "-m", "tests.benchmarks.peer_server")
        self.agents_root = self._programs["worker"].pid
        wait_until(self._answers, timeout=START_SECONDS, what="the peer's server answers")
        wait_until(self.is_settled, timeout=START_SECONDS, what="the peer is warm")
        wait_until(self._is_registered, timeout=START_SECONDS, what="the peer's worker is registered")

    def stop(self) -> None:
        """End it, with every process of every call."""
        for program in self._programs.values():
            everyone = costs.tree(program.pid)
            for process in everyone:
                process.send_signal(signal.SIGKILL)
            program.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def roots(self) -> dict[str, int]:
        """Its programs."""
        return {name: program.pid for name, program in self._programs.items()}

    def is_settled(self) -> bool:
        """As its processes say: it does not tell how many are idle."""
        return len(self.agents()) == WARM

    async def agent_pid(self, session_id: str) -> int:
        """As its job wrote."""
        path = self._pids / session_id
        await wait_until_async(lambda: path.exists() and path.read_text(), what="the job has written its pid")
        return int(path.read_text())

    def agents(self) -> list[int]:
        """The forkserver's children."""
        return [
            child.pid
            for parent in psutil.Process(self.agents_root).children()
            for child in parent.children()
            if costs.is_there(child.pid)
        ]

    def _run(self, name: str, environment: dict[str, str], *command: str | Path) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._programs[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/openapi.json").status_code == 200
        except httpx.TransportError:
            return False

    def _is_registered(self) -> bool:
        time.sleep(0.1)
        return "registered worker" in (self._folder / "worker.log").read_text()


def _address(livekit: LiveKitServer) -> dict[str, str]:
    return {"LIVEKIT_URL": livekit.url, "LIVEKIT_API_KEY": livekit.key, "LIVEKIT_API_SECRET": livekit.secret}


async def end_call(url: str, session_id: str) -> None:
    """Ask a system to end a call."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        await client.post("/orchestrator/session/end", json={"sessionId": session_id})
