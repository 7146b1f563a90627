"""Callers by the dozen, each a process of its own, and what became of each call."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.benchmarks.calling import Order, write_order

FORK_SECONDS = 0.02
"""What it takes to have one more caller ready, on a busy machine."""

WORD_SECONDS = 30.0
"""How late a caller's last word may come."""
UNTOLD = {"stage": "lost", "why": "its process ended without a word"}


@dataclass
class Placed:
    """One call that was placed. ``heard`` and ``over`` resolve to the caller's own record, or None when it is lost."""

    order: Order
    heard: "asyncio.Future[dict[str, Any] | None]"
    over: "asyncio.Future[dict[str, Any] | None]"
    why_lost: str = ""
    gaps: list[dict[str, float]] = field(default_factory=list)
    """When the sound was back (``at``), how much was ``missing``, and how long it was ``away`` by the clock."""

    def take(self, answer: dict[str, Any]) -> None:
        """Note what the caller told."""
        stage = answer["stage"]
        if stage == "lost" and not self.over.done():
            self.why_lost = answer["why"]
        if stage == "gap":
            self.gaps.append(answer)
        for name, future in (("heard", self.heard), ("over", self.over)):
            if not future.done() and stage in (name, "lost"):
                future.set_result(None if stage == "lost" else answer)


@dataclass
class Callers:
    """The process that forks callers. ``async with`` ends it, and every caller with it."""

    _process: "subprocess.Popen[bytes] | None" = None
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _calls: dict[int, Placed] = field(default_factory=dict)
    _unread: bytes = b""

    async def __aenter__(self) -> "Callers":
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = _start((sys.executable, "-m", "tests.benchmarks.calling"), environment)
        asyncio.get_running_loop().add_reader(self._out, self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._out)
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream:
                    stream.close()

    @property
    def pid(self) -> int:
        """The process under which every caller runs."""
        assert self._process, "not started"
        return self._process.pid

    def place(self, url: str, *, count: int = 1, stay: float = 2.0, **more: Any) -> list[Placed]:
        """Let ``count`` callers call at the same moment, once all of them are there; ``more`` as in Order."""
        at = time.monotonic() + 0.15 + count * FORK_SECONDS
        loop = asyncio.get_running_loop()
        placed = []
        for number in itertools.islice(self._numbers, count):
            order = Order(number=number, url=url, at=at, stay=stay, **more)
            call = Placed(order, loop.create_future(), loop.create_future())
            self._calls[number] = call
            # The library may end a process that has tried to connect in vain, without a word of ours.
            loop.call_later(order.patience + stay + WORD_SECONDS, call.take, UNTOLD)
            self._write(write_order(order))
            placed.append(call)
        return placed

    def hang_up(self, call: Placed) -> None:
        """Let a caller end its call now."""
        self._write(json.dumps({"end": call.order.number}) + "\n")
        asyncio.get_running_loop().call_later(WORD_SECONDS, call.take, UNTOLD)

    @property
    def _out(self) -> int:
        assert self._process, "not started"
        assert self._process.stdout
        return self._process.stdout.fileno()

    def _write(self, line: str) -> None:
        assert self._process, "not started"
        assert self._process.stdin
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()

    def _read(self) -> None:
        *lines, self._unread = (self._unread + os.read(self._out, 65_536)).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._calls[answer["number"]].take(answer)


def _start(command: tuple[str, ...], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    noise = subprocess.DEVNULL  # the library tells of every closed channel
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=noise, env=environment, start_new_session=True)
