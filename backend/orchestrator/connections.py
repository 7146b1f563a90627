"""Clients that hold a connection and do not get on: each has so long, and all together so many places.

A connection *waits* while it is the client's turn: before and between requests, while one is being sent, while an
answer is not being read. Nobody may wait longer than ``TURN_SECONDS``. When all places are taken, the one who has
waited longest makes room for the next; so a thousand idle connections keep nobody out.
"""

import asyncio
import json
import resource
import time
from typing import Any

from h11 import IDLE, SEND_RESPONSE
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

TURN_SECONDS = 15.0
"""For a head and a body of 64 KiB, and for 48 KiB of an answer: 35 kbit/s, the slowest mobile network."""
SWEEP_SECONDS = 1.0
MOST = 4_096
"""Places, far more than requests ever need at once; fewer where the hard limit of open files is lower."""
FILES = 16_384
"""Wanted as the limit of open files: besides the places for those who come in a burst and have none yet."""
SPARE_FILES = 256
"""For Redis, LiveKit, the broker, the page's files."""


class Connections:
    """The connections of one server."""

    def __init__(self, most: int = MOST, turn_seconds: float = TURN_SECONDS) -> None:
        self.most, self.turn_seconds = min(most, _files() - SPARE_FILES), turn_seconds
        self._pause_seconds = min(SWEEP_SECONDS, turn_seconds / 5)
        self.waiting: dict[GuardedProtocol, float] = {}
        """Since when, by ``time.monotonic``; the longest first."""
        self._sweep: asyncio.TimerHandle | None = None

    def wait(self, protocol: "GuardedProtocol") -> None:
        """From now on it is this client's turn, unless it was already."""
        self.waiting.setdefault(protocol, time.monotonic())
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._pause_seconds, self._end_overdue)

    def proceed(self, protocol: "GuardedProtocol") -> None:
        """It is our turn, or the client is gone."""
        self.waiting.pop(protocol, None)

    def make_room(self, taken: int) -> bool:
        """Have a place for one more, where so many are taken; False: there is none."""
        if taken <= self.most:
            return True
        longest = next(iter(self.waiting), None)
        if longest is None:
            return False
        longest.give_up("The server has too many connections: try again in a few seconds", status=503)
        return True

    def _end_overdue(self) -> None:
        overdue = time.monotonic() - self.turn_seconds
        for protocol in [protocol for protocol, since in self.waiting.items() if since < overdue]:
            protocol.give_up(f"The request did not come within {self.turn_seconds:.0f} s: send it again", status=408)
        is_needed = bool(self.waiting)
        self._sweep = (
            asyncio.get_running_loop().call_later(self._pause_seconds, self._end_overdue) if is_needed else None
        )


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with a place among ``connections``, and errors of the same shape as all others."""

    def __init__(self, *, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._places = connections
        self._is_unread = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Take a place, or be sent away."""
        super().connection_made(transport)
        if self._places.make_room(len(self.connections)):
            self._places.wait(self)
        else:
            self.give_up("The server is busy: try again in a few seconds", status=503, is_asked=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._places.proceed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        self._places.proceed(self)
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._is_unread = True
        self._look()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._is_unread = False
        self._look()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self.give_up("This is no HTTP request: see /docs", status=400)

    def give_up(self, detail: str, *, status: int, is_asked: bool = False) -> None:
        """End the connection; with a word, once the client has sent anything or ``is_asked`` says that it will."""
        self._places.proceed(self)
        is_asked = is_asked or bool(self.conn.trailing_data[0]) or self.conn.their_state is not IDLE
        if is_asked and self.conn.our_state in (IDLE, SEND_RESPONSE) and not self._is_unread:
            self.transport.write(_words(status, detail))
        if self._has_request():
            self.cycle.disconnected = True  # whoever works on it hears of a client that is gone
            self.cycle.message_event.set()
            self.flow.resume_writing()
        if self._is_unread:
            self.transport.abort()  # a farewell would wait to be read too
        self.transport.close()

    def _look(self) -> None:
        """See whose turn it is."""
        if self.transport.is_closing():
            self._places.proceed(self)
        elif self._is_unread or not self._has_request() or self.cycle.more_body:
            self._places.wait(self)
        else:
            self._places.proceed(self)

    def _has_request(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first: its declared type leaves that out
        return cycle is not None and not cycle.response_complete

    def _should_upgrade(self) -> bool:
        return False  # no WebSockets here; uvicorn would log each wish for one


_CODES = {
    400: ("Bad Request", "invalid_http"),
    408: ("Request Timeout", "too_slow"),
    503: ("Service Unavailable", "unavailable"),
}


def _words(status: int, detail: str) -> bytes:
    reason, code = _CODES[status]
    body = json.dumps({"success": False, "error": code, "detail": detail}).encode()
    retry = "Retry-After: 5\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{retry}"
        "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _files() -> int:
    """Let this process have so many files open, if it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)
