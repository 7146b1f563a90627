"""supervisord as a child: start it, ask it, stop it, and end what it left behind."""

import http.client
import os
import subprocess
import sys
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import SupervisorTransport

from backend.local.setup import ROOT
from backend.local.steps import StepFailedError, progress, say

CONFIGURATION = ROOT / "supervisord.conf"

LONGEST_SOCKET_PATH = 107 - 12
"""What the kernel allows, less the process id that supervisord appends while it binds."""

OTHERS_STOP_SECONDS = 45.0
"""All programs but the launcher together: the sum of their stopwaitsecs."""

LADDER_SECONDS = 2.0
"""From SIGTERM to SIGKILL for what supervisord left."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program as supervisord sees it."""

    name: str
    state: str
    """Such as RUNNING, BACKOFF or FATAL."""
    pid: int
    """0 while it does not run."""


class Supervisor:
    """One running supervisord; ``run_dir`` is absolute and has its socket."""

    def __init__(self, run_dir: Path) -> None:
        self.socket = run_dir / "supervisor.sock"
        self._output = run_dir / "logs" / "supervisord.out"
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET_PATH:
            raise StepFailedError(f"{self.socket} is too long for a unix socket: move the project, or set RUN_DIR.")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "supervisor.supervisord", "-c", CONFIGURATION),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # The terminal's Ctrl-C and hang-up are for us; supervisord would take a hang-up for a restart.
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """Return what it printed: what is wrong with its configuration."""
        return self._output.read_text(errors="replace").strip()

    def raise_if_killed(self) -> None:
        """Do nothing when it was shut down in order.

        Raises:
            StepFailedError: it was not.
        """
        if self._process.returncode != 0:
            raise StepFailedError(
                f"supervisord ended with code {self._process.returncode}. {self.last_words()}".strip()
            )

    def programs(self) -> list[Program]:
        """Return what each program is doing; [] while supervisord does not answer."""
        try:
            return [Program(name=one["name"], state=one["statename"], pid=one["pid"]) for one in _ask(self.socket)]
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return []

    def stop(self, *, launcher_seconds: float) -> None:
        """Stop all programs in their order; ``launcher_seconds`` is how long that may take the launcher."""
        if not self.has_ended:
            self._process.terminate()
        about = f"calls may take {launcher_seconds:.0f} s to end"
        with progress("stopping", about):
            try:
                self._process.wait(launcher_seconds + OTHERS_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextmanager
def supervisor(run_dir: Path, *, launcher_seconds: float) -> Iterator[Supervisor]:
    """Run supervisord for as long as the block does; afterwards no process of it is left, nor an agent."""
    supervised = Supervisor(run_dir)
    try:
        yield supervised
    finally:
        supervised.stop(launcher_seconds=launcher_seconds)
        end_leftovers(run_dir)


def end_leftovers(run_dir: Path) -> None:
    """End every process that a supervisord of this run directory started, and such a supervisord, gone wild or not."""
    left = leftovers(run_dir)
    if not left:
        return
    say(f"ending {len(left)} processes that were left: {', '.join(str(process.pid) for process in left)}")
    for process in left:
        _signal(process, "terminate")
    _, stubborn = psutil.wait_procs(left, timeout=LADDER_SECONDS)
    for process in stubborn:
        _signal(process, "kill")
    psutil.wait_procs(stubborn, timeout=LADDER_SECONDS)


def leftovers(run_dir: Path) -> list[psutil.Process]:
    """Find them by what supervisord puts into its children's environment, which their children inherit."""
    address = f"unix://{run_dir / 'supervisor.sock'}"
    return [process for process in psutil.process_iter() if _is_left(process, address, run_dir)]


def _is_left(process: psutil.Process, address: str, run_dir: Path) -> bool:
    try:
        environment = process.environ()
        if environment.get("SUPERVISOR_SERVER_URL") == address:
            return process.status() != psutil.STATUS_ZOMBIE
        return environment.get("RUN_DIR") == str(run_dir) and "supervisor.supervisord" in process.cmdline()
    except psutil.Error:  # gone meanwhile, a zombie, or another user's: none of them is ours to end
        return False


def _signal(process: psutil.Process, name: str) -> None:
    try:
        getattr(process, name)()
    except psutil.NoSuchProcess:
        return


def _ask(socket: Path) -> list[dict[str, Any]]:
    transport = SupervisorTransport(None, None, serverurl=f"unix://{socket}")
    with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as server:
        answer = server.supervisor.getAllProcessInfo()
    return answer if isinstance(answer, list) else []
