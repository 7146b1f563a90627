"""The whole product, started and stopped as ``make run`` starts and stops it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Container
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil

from backend.common.settings import PROGRAMS
from tests import leaks
from tests.valkey_server import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
BUILT = ROOT / ".run" / "bin"
READY_SECONDS = 90.0
STOP_SECONDS = 40.0
TARGET = {"PREWARM_POOL_SIZE": "2", "LOG_LEVEL": "DEBUG"}
"""Two warm agents are enough for most tests, and DEBUG shows whether anything secret is logged."""


class House:
    """One run of the product on ports of its own; ``variables`` are added to its environment."""

    def __init__(self, port: int = 0, /, **variables: str) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # Short: the path of a unix socket may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="gr-"))
        self.run_dir = self.folder / "run"
        self.output = self.folder / "output"
        self.headers: dict[str, str] = {}
        """Sent with every request: an API key, where the house wants one."""
        self._mark = uuid.uuid4().hex
        self._environment = _without_settings() | TARGET | variables
        self._environment |= {"PORT": str(self.port), "RUN_DIR": str(self.run_dir), "HOST_ID": "house"}
        self._environment |= {"PATH": f"{BUILT}{os.pathsep}{os.environ['PATH']}", leaks.MARK: self._mark}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it says that it is ready and has its warm agents."""
        self.output = self.folder / f"output-{uuid.uuid4().hex[:6]}"  # what the last run said is no sign of this one
        with self.output.open("ab") as output:
            command = (sys.executable, "-m", "backend.local")
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=output, stderr=output)
        leaks.may_stay(self._process.pid)
        wait_until(self._is_ready, timeout=READY_SECONDS, what="the house is ready")
        wait_until(self.is_warm, timeout=READY_SECONDS, what="the agents are warm")

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it as Ctrl-C does; every process of it must be gone."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        try:
            code = self._process.wait(STOP_SECONDS)
        finally:
            left = [f"{process.pid} {' '.join(process.cmdline())[:120]}" for process in leaks.of_run(self._mark)]
            for process in leaks.of_run(self._mark):
                process.kill()
            self._process = None
        assert code == 0, self.output.read_text()[-3000:]
        assert not left, f"left behind by the stop: {left}"

    def lose_power(self, *, but: Container[int] = ()) -> None:
        """Kill every process of it at once, ``but`` these."""
        for process in self.processes():
            if process.pid not in but:
                process.kill()
        if self._process:
            self._process.wait(10)
            self._process = None

    def discard(self) -> None:
        """Stop it and remove its files."""
        self.stop()
        shutil.rmtree(self.folder)

    def get(self, path: str) -> dict[str, Any]:
        """GET a path of the API."""
        answer: dict[str, Any] = httpx.get(f"{self.url}{path}", headers=self.headers, timeout=10).json()
        return answer

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST to the API; the answer must be 200."""
        answer = httpx.post(f"{self.url}{path}", json=body, headers=self.headers, timeout=10)
        assert answer.status_code == 200, answer.text
        parsed: dict[str, Any] = answer.json()
        return parsed

    def refusal(self, path: str, body: dict[str, Any]) -> int:
        """POST what is to be refused; returns the status. Every refusal says what to do."""
        answer = httpx.post(f"{self.url}{path}", json=body, headers=self.headers, timeout=10)
        assert answer.json()["detail"]
        return answer.status_code

    def kill(self, pid: int) -> None:
        """End one process of this house as the kernel does."""
        assert pid in {process.pid for process in leaks.of_run(self._mark)}, "not ours"
        os.kill(pid, signal.SIGKILL)

    def is_warm(self) -> bool:
        """Whether the pool is full."""
        pool = self.get("/stats")["pool"]
        return bool(pool["target"]) and bool(pool["warm"] >= pool["target"])

    def processes(self) -> list[psutil.Process]:
        """Every process of this house, whoever is its parent by now."""
        return leaks.of_run(self._mark)

    def agents(self) -> set[str]:
        """The agents of which the launcher keeps a state file."""
        return {path.stem for path in (self.run_dir / "house" / "agents").glob("*.json")}

    def log_of(self, session_id: str) -> str:
        """What the session's agents logged."""
        return (self.run_dir / "logs" / "agents" / f"{session_id}.log").read_text()

    def everything_written(self) -> str:
        """All logs and outputs of this run, in one text; Redis' own data files aside."""
        files = [*self.folder.glob("output*"), *(self.run_dir / "logs").rglob("*.*")]
        return "\n".join(path.read_text(errors="replace") for path in files if path.is_file())

    def secrets(self) -> list[str]:
        """Every secret that was made for this run."""
        kept = json.loads((self.run_dir / "kept.json").read_text())
        return [kept["livekit_api_secret"], kept["redis_password"]]

    def control(self, *words: str) -> str:
        """Ask supervisorctl."""
        command = (sys.executable, "-m", "supervisor.supervisorctl", "-c", "supervisord.conf")
        server = ("-s", f"unix://{self.run_dir}/supervisor.sock")
        return subprocess.run((*command, *server, *words), cwd=ROOT, capture_output=True, text=True, check=False).stdout

    def _is_ready(self) -> bool:
        assert self._process, "not started"
        assert self._process.poll() is None, self.output.read_text()[-3000:]
        return "Greenroom is ready" in self.output.read_text()


def _without_settings() -> dict[str, str]:
    """This environment without any variable of ours: the test says what is set."""
    ours = {str(field.validation_alias) for program in PROGRAMS for field in program.model_fields.values()}
    return {name: value for name, value in os.environ.items() if name not in ours}
