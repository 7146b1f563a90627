"""A launcher of misbehaving bots, as a process of its own, and what a test asks of it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment
from backend.common.launcher_socket import LauncherUnreachable, ask
from tests.valkey_server import Valkey
from tests.waiting import wait_until

HOST = "h"
ASK_SECONDS = 3.0
START_SECONDS = 15.0
"""Its imports, on a machine that runs other tests too."""


Launch = Callable[..., "RunningLauncher"]
"""Starts a launcher with these variables."""


@contextlib.contextmanager
def launchers(valkey: Valkey) -> Iterator[Launch]:
    """Start launchers, one at a time; they and their agents end with the block, whatever was done to them."""
    folder = Path(tempfile.mkdtemp(prefix="gr"))  # pytest's own path is too long for a socket
    launched: list[RunningLauncher] = []

    def launch(**variables: str) -> RunningLauncher:
        launched.append(RunningLauncher(folder, valkey, **variables))
        launched[-1].start()
        return launched[-1]

    try:
        yield launch
    finally:
        valkey.heal()
        for launcher in launched:
            launcher.end()
        shutil.rmtree(folder)


class RunningLauncher:
    """One launcher at a time for host ``h`` in ``folder``; it can be killed and started again."""

    def __init__(self, folder: Path, valkey: Valkey, **variables: str) -> None:
        self.folder, self.valkey = folder, valkey
        self.socket = folder / HOST / "launcher.sock"
        self.agents_folder = folder / HOST / "agents"
        self.log = folder / "launcher.log"
        self.exchange = x.Exchange()
        self.variables = {
            "RUN_DIR": str(folder),
            "LOG_DIR": str(folder / "logs"),
            "HOST_ID": HOST,
            "REDIS_URL": valkey.url,
            "LIVEKIT_URL": "ws://127.0.0.1:9",
            **variables,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it takes commands."""
        self.process = self.popen()
        wait_until(self.answers, timeout=START_SECONDS, what="the launcher answers")

    def popen(self, stderr: int | None = None) -> "subprocess.Popen[bytes]":
        """Start it in a group of its own, and do not wait; without ``stderr`` it logs to a file."""
        command, environment = [sys.executable, "-m", "tests.fakes.fake_bots"], os.environ | self.variables
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stderr=stderr or log, start_new_session=True
            )

    def answers(self) -> bool:
        """Whether it takes commands; fails when it ended instead."""
        assert self.process
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.status())
        except LauncherUnreachable:
            return False

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def ask(self, **request: str) -> dict[str, Any]:
        """Send a command; raises what ``ask`` raises."""
        return asyncio.run(ask(self.socket, request, timeout_seconds=ASK_SECONDS))

    def spawn(self, agent_id: str, room: str = "", room_token: str = "") -> Agent:
        answer = self.ask(do="spawn", agent_id=agent_id, room=room, room_token=room_token)
        return Agent(id=agent_id, nonce=answer["nonce"], host_id=HOST, pid=answer["pid"])

    def status(self) -> dict[str, Any]:
        return self.ask(do="status")

    def living(self) -> list[str]:
        return sorted(row["agent_id"] for row in self.status()["agents"])

    def told(self, agent_id: str) -> dict[str, Any]:
        """Wait for the note that an agent leaves, and read it."""
        path = self.folder / f"{agent_id}.told"
        wait_until(path.exists, what=f"{agent_id} leaves a note")
        told: dict[str, Any] = json.loads(path.read_text())
        return told

    def state(self, agent_id: str) -> dict[str, Any]:
        """Wait for an agent's state file and read it."""
        path = self.agents_folder / f"{agent_id}.json"
        wait_until(path.exists, what=f"{agent_id} writes its state")
        state: dict[str, Any] = json.loads(path.read_text())
        return state

    def files(self) -> list[str]:
        return sorted(path.name for path in self.agents_folder.glob("*"))

    def arrive(self, agent: Agent) -> Assignment | str:
        """Let Redis know the agent, as it would do itself."""
        return self.exchange.run_sync(self.valkey.client, x.agent_arrives(agent))

    def record(self, agent: Agent) -> dict[str, str]:
        record: dict[str, str] = self.valkey.client.hgetall(keys.agent(agent.id))
        return record

    def wait_for_report(self, agent: Agent) -> str:
        """Wait until Redis knows of the exit; returns the exit code that it was told."""
        wait_until(lambda: self.record(agent).get("state") == "gone", what=f"the exit of {agent.id} is reported")
        return self.record(agent)["exit"]

    def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout: float = 10) -> int:
        """Send it a signal and wait for its end; returns its exit code."""
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(8)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
