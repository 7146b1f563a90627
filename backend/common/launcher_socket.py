"""The launcher's socket: one JSON object per line, answered by one. Both ends of it.

A request is ``{"do": <Ask>, ...}``; an answer has ``"ok": true``, or ``"ok": false`` with ``error``, a code,
and ``detail``, a sentence.
"""

import asyncio
import contextlib
import json
import os
import re
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from backend.common.contract import Ask

PATH_BYTES = 107
"""The longest path that a unix socket can have."""
LINE_BYTES = 16 * 1024
"""A request: ids, a room's name and a token of some hundred bytes."""
ANSWER_BYTES = 4 * 1024 * 1024
"""An answer: the longest is the status of ten thousand agents."""
CLIENTS = 64
STALL_SECONDS = 5.0
"""A client that has not sent a whole line, or read its answer, for this long is dropped."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""An agent's id becomes a file's name: no slash, no leading dot."""
_FIELDS: Mapping[Ask, tuple[frozenset[str], frozenset[str]]] = {
    Ask.SPAWN: (frozenset({"agent_id"}), frozenset({"room", "room_token"})),
    Ask.KILL: (frozenset({"agent_id", "nonce"}), frozenset()),
    Ask.STATUS: (frozenset(), frozenset()),
}
"""What each command must have, and what it may have."""

Answer = dict[str, object]


class LauncherError(Exception):
    """The launcher did not do what it was asked."""


class LauncherUnreachable(LauncherError):
    """No launcher listens, or it went away or stayed silent: whether it obeyed is not known."""


class LauncherRefused(LauncherError):
    """The launcher answered no; ``code`` says why, for programs."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


async def ask(socket_path: Path, request: Mapping[str, object], *, timeout_seconds: float) -> Answer:
    """Send one request to the launcher and return its answer. Requests may be repeated.

    Raises:
        LauncherUnreachable: no answer came in ``timeout_seconds``.
        LauncherRefused: the answer was no.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            answer = await _exchange_lines(socket_path, request)
    except (OSError, TimeoutError, ValueError) as error:
        raise LauncherUnreachable(f"the launcher at {socket_path} does not answer: {type(error).__name__}") from error
    if answer.get("ok") is not True:
        raise LauncherRefused(str(answer.get("error")), str(answer.get("detail")))
    return answer


async def _exchange_lines(path: Path, request: Mapping[str, object]) -> Answer:
    reader, writer = await asyncio.open_unix_connection(path, limit=ANSWER_BYTES)
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        await writer.drain()
        answer = json.loads(await reader.readline())
    finally:
        writer.close()
    if not isinstance(answer, dict):
        raise ValueError("the answer is not an object")
    return answer


def read_request(line: bytes) -> tuple[Ask, dict[str, str]]:
    """The command and its fields; raises ValueError with a sentence about what is wrong, which quotes no value."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not one line of JSON") from None
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise ValueError("not an object whose values are all strings")
    if fields.get("do") not in list(Ask):
        raise ValueError(f"do is one of {', '.join(Ask)}")
    ask = Ask(fields.pop("do"))
    must, may = _FIELDS[ask]
    if not must <= fields.keys() <= must | may:
        raise ValueError(f"{ask} must have {sorted(must)} and may have {sorted(may)}")
    if "agent_id" in fields and not _NAME.fullmatch(fields["agent_id"]):
        raise ValueError("agent_id is made of up to 128 letters, digits, dots, dashes and underscores")
    return ask, fields


def refusal(code: str, detail: str) -> Answer:
    """The answer no."""
    return {"ok": False, "error": code, "detail": detail}


class Server:
    """The launcher's end, driven by its selector: each key's ``data`` is a function that takes the event mask."""

    def __init__(self, path: Path, selector: selectors.BaseSelector, answer: Callable[[bytes], Answer]) -> None:
        """Listen at ``path``, replacing what a dead launcher left there; owner only."""
        self._path, self._selector, self._answer = path, selector, answer
        self._clients: set[_Client] = set()
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        umask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(umask)
        self._socket.listen(CLIENTS)
        self._socket.setblocking(False)
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def drop_stalled(self, now: float) -> None:
        """Close the clients that neither send nor read; ``now`` by the monotonic clock."""
        for client in [client for client in self._clients if now >= client.until]:
            client.close()

    def close(self) -> None:
        """Stop listening, close all clients, remove the socket."""
        for client in list(self._clients):
            client.close()
        self._selector.unregister(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _accept(self, _mask: int) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return  # it hung up already
        if len(self._clients) >= CLIENTS:
            connection.close()
            return
        self._clients.add(_Client(connection, self._selector, self._answer, self._clients.discard))


class _Client:
    """One connection: what it has sent so far and what it has not read yet."""

    def __init__(
        self,
        connection: socket.socket,
        selector: selectors.BaseSelector,
        answer: Callable[[bytes], Answer],
        closed: Callable[["_Client"], None],
    ) -> None:
        self.until = time.monotonic() + STALL_SECONDS
        self._connection, self._selector, self._answer, self._closed = connection, selector, answer, closed
        self._received, self._unsent = b"", b""
        self._is_last = False
        """True once no more will be read: the answers go out, then the connection closes."""
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, self._on_ready)

    def close(self) -> None:
        self._selector.unregister(self._connection)
        self._connection.close()
        self._closed(self)

    def _on_ready(self, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ:
                self._read()
            self._write()
        except BlockingIOError:
            return
        except OSError:
            self._unsent, self._is_last = b"", True
        if self._is_last and not self._unsent:
            self.close()

    def _read(self) -> None:
        received = self._connection.recv(LINE_BYTES)
        self._is_last = self._is_last or not received
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            self._say(self._answer(line))
        if len(self._received) > LINE_BYTES:
            self._say(refusal("too_long", f"a line may have {LINE_BYTES} bytes"))
            self._received, self._is_last = b"", True

    def _say(self, answer: Answer) -> None:
        self._unsent += json.dumps(answer).encode() + b"\n"
        self.until = time.monotonic() + STALL_SECONDS

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if self._unsent:
                self._unsent = self._unsent[self._connection.send(self._unsent) :]
        # A client that does not read its answers is not read either: what it can make us keep is bounded.
        wanted = selectors.EVENT_WRITE if self._unsent or self._is_last else selectors.EVENT_READ
        self._selector.modify(self._connection, wanted, self._on_ready)
