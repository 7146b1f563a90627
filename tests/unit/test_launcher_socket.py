"""Both ends of the launcher's socket, without a launcher."""

import selectors
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.common.launcher_socket import (
    CLIENTS,
    LINE_BYTES,
    STALL_SECONDS,
    Answer,
    LauncherRefused,
    LauncherUnreachable,
    Server,
    ask,
    refusal,
)

pytestmark = pytest.mark.keeps_descriptors_closed


class Loop:
    """A server with the selector that drives it, in the test's own thread or in one of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[bytes] = []
        self.selector = selectors.DefaultSelector()
        self.server = Server(path, self.selector, self.answer)
        self._over = threading.Event()

    def answer(self, line: bytes) -> Answer:
        self.answers.append(line)
        return refusal("no", "never") if line == b'{"do": "no"}' else {"ok": True, "size": len(line)}

    def turn(self) -> None:
        """Handle what is ready, and what that makes ready."""
        while events := self.selector.select(0.01):
            for key, mask in events:
                key.data(mask)

    def keep_turning(self) -> threading.Thread:
        def turn() -> None:
            while not self._over.is_set():
                self.turn()

        thread = threading.Thread(target=turn)
        thread.start()
        return thread

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(str(self.path))
        return client

    def close(self) -> None:
        self._over.set()
        self.server.close()
        self.selector.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gr") as folder:
        yield Path(folder)


@pytest.fixture
def loop(folder: Path) -> Iterator[Loop]:
    loop = Loop(folder / "s")
    yield loop
    loop.close()
    assert not loop.path.exists()


@pytest.fixture
def turning(folder: Path) -> Iterator[Loop]:
    loop = Loop(folder / "s")
    thread = loop.keep_turning()
    yield loop
    loop._over.set()
    thread.join()
    loop.close()


async def test_a_question_is_answered(turning: Loop) -> None:
    assert await ask(turning.path, {"do": "x"}, timeout_seconds=2) == {"ok": True, "size": 11}


async def test_a_no_says_why(turning: Loop) -> None:
    with pytest.raises(LauncherRefused, match="no: never") as refused:
        await ask(turning.path, {"do": "no"}, timeout_seconds=2)
    assert refused.value.code == "no"


async def test_no_launcher_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(LauncherUnreachable, match="FileNotFoundError"):
        await ask(folder / "s", {"do": "x"}, timeout_seconds=2)


async def test_a_silent_launcher_is_not_waited_for(loop: Loop) -> None:
    began = time.monotonic()
    with pytest.raises(LauncherUnreachable, match="TimeoutError"):
        await ask(loop.path, {"do": "x"}, timeout_seconds=0.1)
    assert time.monotonic() - began < 1
    loop.turn()


def test_only_the_owner_may_ask(loop: Loop) -> None:
    assert stat.S_IMODE(loop.path.stat().st_mode) == 0o600


def test_what_a_dead_launcher_left_is_replaced(folder: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(folder / "s"))
    left.close()
    Loop(folder / "s").close()


def test_lines_may_come_in_pieces_and_together(loop: Loop) -> None:
    with loop.connect() as client:
        for piece in (b"on", b"e\ntwo\nthr", b"ee\n"):
            client.sendall(piece)
            loop.turn()
        assert loop.answers == [b"one", b"two", b"three"]
        assert client.recv(1000).count(b"\n") == 3


def test_answers_come_even_to_a_client_that_only_listens_on(loop: Loop) -> None:
    with loop.connect() as client:
        client.sendall(b"one\n")
        client.shutdown(socket.SHUT_WR)
        loop.turn()
        assert client.recv(1000) == b'{"ok": true, "size": 3}\n'
        assert client.recv(1000) == b""


def test_an_endless_line_is_refused_and_the_client_dropped(loop: Loop) -> None:
    with loop.connect() as client:
        client.sendall(b"x" * (2 * LINE_BYTES))
        loop.turn()
        assert b"too_long" in client.recv(1000)
        assert client.recv(1000) == b""
    assert loop.answers == []


def test_a_client_that_does_not_read_is_not_read_either(loop: Loop) -> None:
    with loop.connect() as client:
        client.setblocking(False)
        sent = 0
        for _ in range(200):
            try:
                sent += client.send(b"\n" * LINE_BYTES)
            except BlockingIOError:
                break
            loop.turn()
        assert sent < 100 * LINE_BYTES
        loop.server.drop_stalled(time.monotonic() + STALL_SECONDS)


def test_a_client_that_stalls_is_dropped_and_one_that_drips_too(loop: Loop) -> None:
    with loop.connect() as client:
        loop.turn()
        client.sendall(b"x")
        loop.turn()
        loop.server.drop_stalled(time.monotonic() + STALL_SECONDS)
        assert client.recv(1000) == b""


def test_a_client_that_stalls_keeps_nobody_else(loop: Loop) -> None:
    with loop.connect() as stalled, loop.connect() as client:
        stalled.sendall(b"x")
        client.sendall(b"one\n")
        loop.turn()
        assert client.recv(1000) == b'{"ok": true, "size": 3}\n'


def test_too_many_clients_are_turned_away(loop: Loop) -> None:
    clients = []
    for _ in range(CLIENTS):
        clients.append(loop.connect())
        loop.turn()
    with loop.connect() as last:
        loop.turn()
        assert last.recv(1000) == b""
    for client in clients:
        client.close()
    loop.turn()
    with loop.connect() as client:
        client.sendall(b"one\n")
        loop.turn()
        assert client.recv(1000)
