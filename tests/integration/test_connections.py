"""Clients that do not get on, send what is no HTTP, or come in thousands: the others are served all the same."""

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
from loguru import logger

from backend.orchestrator.connections import Connections
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import RunningApi, running_api
from tests.waiting import wait_until_async

TURN_SECONDS, PATIENCE_SECONDS = 0.5, 4.0
PLACES, CROWD = 50, 600
SOON_SECONDS = 5.0
"""Sooner than anything is given up; far more than it takes on a machine that does nothing else."""
HEAD = b"POST /api/session/start HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"userName": "Ann"}'
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[RunningApi]:
    """An API with few places and little patience."""
    async with running_api(make_settings(), Connections(most=PLACES, turn_seconds=TURN_SECONDS)) as running:
        yield running


@pytest.fixture
async def patient(make_settings: MakeSettings) -> AsyncIterator[RunningApi]:
    """An API with few places that waits as long as a busy machine may need."""
    async with running_api(make_settings(), Connections(most=PLACES, turn_seconds=PATIENCE_SECONDS)) as running:
        yield running


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What was logged as a warning or worse."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(sink)


class Raw:
    """One connection that says what no client library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, api: RunningApi) -> "Raw":
        return cls(*await asyncio.open_connection("127.0.0.1", api.settings.port))

    async def say(self, *parts: bytes) -> None:
        """Send it; who was hung up on may not know yet."""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                self.writer.write(part)
                await self.writer.drain()

    async def rest(self, within: float = 5.0) -> bytes:
        """Everything that comes until the other end hangs up."""
        try:
            async with asyncio.timeout(within):
                return await self.reader.read()
        except ConnectionError:
            return b""
        finally:
            self.writer.close()


def status_and_error(answer: bytes) -> tuple[int, str]:
    """Of an answer that must have the shape of all errors."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"nosniff" in head
    said = json.loads(body)
    assert said.keys() == {"success", "error", "detail"}
    assert said["detail"]
    return int(head.split()[1]), said["error"]


async def is_served(api: RunningApi) -> None:
    """See that others are."""
    answer = await api.get("/livez")
    assert answer.status == 200
    assert answer.seconds < SOON_SECONDS


# -- who does not get on


@pytest.mark.parametrize(
    ("part", "is_told"),
    [
        (b"", False),
        (b"P", True),
        (HEAD, True),
        (HEAD + b"Content-Length: 19\r\n\r\n", True),
        (HEAD + b"Content-Length: 19\r\n\r\n{", True),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", True),
        (HEAD + b"Content-Length: 19\r\nExpect: 100-continue\r\n\r\n", True),
        (LIVEZ[:-2], True),
    ],
    ids=["nothing", "a letter", "no end", "no body", "half a body", "half a chunk", "waits for 100", "half a head"],
)
async def test_who_stops_in_the_middle_is_let_go(api: RunningApi, part: bytes, is_told: bool) -> None:
    client, before = await Raw.open(api), time.monotonic()
    await client.say(part)
    answer = await client.rest(within=TURN_SECONDS + 4)
    assert time.monotonic() - before >= TURN_SECONDS - 0.1
    told = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert (status_and_error(told) == (408, "too_slow")) if is_told else not told


@pytest.mark.parametrize("head", [b"", HEAD + b"Content-Length: 1000\r\n\r\n"], ids=["head", "body"])
async def test_who_sends_a_letter_now_and_then_is_let_go_too(api: RunningApi, head: bytes) -> None:
    client = await Raw.open(api)
    await client.say(head)

    async def drip() -> None:
        while True:
            await client.say(b"x")
            await asyncio.sleep(0.05)

    dripping = asyncio.ensure_future(drip())
    answer = await client.rest(within=TURN_SECONDS + 4)
    dripping.cancel()
    assert status_and_error(answer) == (408, "too_slow")


async def test_who_does_not_read_the_answer_is_let_go(api: RunningApi) -> None:
    client = await Raw.open(api)
    await client.say(b"GET /page/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
    port = client.writer.get_extra_info("sockname")[1]

    def is_open() -> bool:
        ends = {
            (found.raddr or ("", 0))[1] for found in psutil.Process().net_connections() if found.status == "ESTABLISHED"
        }
        return port in ends

    assert is_open()
    await wait_until_async(lambda: not is_open(), timeout=TURN_SECONDS + 5, what="the server hangs up")
    client.writer.transport.abort()


async def test_who_sends_slowly_and_gets_on_is_served(patient: RunningApi) -> None:
    client = await Raw.open(patient)
    for part in (HEAD, b"Connection: close\r\nContent-Length: 19\r\n\r\n", BODY[:5], BODY[5:]):
        await client.say(part)
        await asyncio.sleep(TURN_SECONDS / 10)
    assert (await client.rest()).startswith(b"HTTP/1.1 200")


# -- who sends something else


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 60,  # TLS
    b"\x00" * 100 + b"\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n",
    b"GET /\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000,
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
    HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloworld\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1;" + b"x" * 100_000,
    LIVEZ + b"\x00garbage\r\n\r\n",
    LIVEZ * 3 + b"GET nothing",
    HEAD + b"Content-Length: 19\r\n\r\n" + BODY + b"{}" * 50 + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n",
]


async def answer_to(api: RunningApi, sent: bytes) -> bytes:
    """All that comes back, until the server hangs up."""
    client = await Raw.open(api)
    await client.say(sent)
    return await client.rest(within=TURN_SECONDS + 15)


async def test_what_is_no_http_is_refused_or_served_and_never_a_500(api: RunningApi, complaints: list[str]) -> None:
    answers = await asyncio.gather(*(answer_to(api, sent) for sent in NO_HTTP))
    for sent, answer in zip(NO_HTTP, answers, strict=True):
        parts = answer.split(b"HTTP/1.1 ")[1:]
        statuses = [int(part.split()[0]) for part in parts]
        assert statuses or not answer, (sent[:200], answer[:200])
        assert all(status < 500 for status in statuses), (sent[:200], answer[:2000])
        if statuses and statuses[-1] == 400:
            status_and_error(b"HTTP/1.1 " + parts[-1])
    assert any(b" 400 " in answer for answer in answers)
    assert not [line for line in complaints if "stall" not in line]  # no stack, no line for each: logs do not fill
    await is_served(api)


async def test_requests_in_a_row_are_answered_in_their_order(patient: RunningApi) -> None:
    client = await Raw.open(patient)
    await client.say(
        LIVEZ
        + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"
        + LIVEZ.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    answer = await client.rest()
    assert [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]


@pytest.mark.parametrize("head", [b"GET /livez HTTP/1.0\r\n\r\n", b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n"])
async def test_http_of_the_old_kind_is_served(patient: RunningApi, head: bytes) -> None:
    client = await Raw.open(patient)
    await client.say(head)
    answer = await client.rest()
    assert b" 200 " in answer.partition(b"\r\n")[0]
    assert answer.endswith(b'{"status":"ok"}')


async def test_no_header_of_ours_can_be_written_from_outside(patient: RunningApi) -> None:
    names = ("a\r\nSet-Cookie: x=y", "a\nX-Mine: 1", "\u202egnp.exe", "a\u2028X-Mine: 1")
    for name in names:
        answer = await patient.start(userName=name, key="k\u0085\u2028x")
        assert not {"X-Mine", "Set-Cookie"} & set(answer.headers)
        assert answer.status < 500
    client = await Raw.open(patient)
    await client.say(b"GET /%0d%0aX-Mine:%201 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"X-Mine" not in (await client.rest())


# -- who comes in thousands


async def test_however_many_are_open_the_next_one_is_served(patient: RunningApi) -> None:
    crowd = [await Raw.open(patient) for _ in range(PLACES * 4)]
    for client in crowd[::2]:
        await client.say(HEAD)
    answers = await asyncio.gather(*(patient.start(userName=f"u{number}") for number in range(10)))
    assert [answer.status for answer in answers] == [200] * 10
    assert max(answer.seconds for answer in answers) < SOON_SECONDS
    await asyncio.gather(*(client.rest(within=PATIENCE_SECONDS + 10) for client in crowd))
    await is_served(patient)


async def test_when_every_place_is_busy_the_next_one_is_told_so(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()

    async def wait(*_: object) -> dict[str, object]:
        await release.wait()
        return {}

    monkeypatch.setattr("backend.orchestrator.api.views.stats", wait)
    async with running_api(make_settings(), Connections(most=3, turn_seconds=PATIENCE_SECONDS)) as api:
        busy = [asyncio.ensure_future(api.get("/stats")) for _ in range(3)]
        places = psutil.Process().net_connections

        def taken() -> int:
            return sum(c.laddr.port == api.settings.port and c.status == "ESTABLISHED" for c in places())

        await wait_until_async(lambda: taken() == 3, what="three are at work")
        client = await Raw.open(api)
        await client.say(LIVEZ)
        answer = await client.rest()
        assert status_and_error(answer) == (503, "unavailable")
        assert b"Retry-After: " in answer
        release.set()
        assert {(await one).status for one in busy} == {200}
        await is_served(api)


@pytest.mark.timeout(60)
async def test_the_memory_of_many_connections_comes_back(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(), Connections(most=2_000, turn_seconds=TURN_SECONDS)) as api:

        async def crowd() -> int:
            clients = [await Raw.open(api) for _ in range(CROWD)]
            await asyncio.gather(*(client.say(HEAD + b"X: " + b"y" * 8_000) for client in clients))
            await asyncio.gather(*(client.rest(within=15) for client in clients))
            del clients
            gc.collect()
            return int(psutil.Process().memory_info().rss)

        await crowd()
        before = await crowd()
        grown = await crowd() - before
        assert grown < 3_000_000, f"{grown / 1e6:.1f} MB more after as many connections more"
