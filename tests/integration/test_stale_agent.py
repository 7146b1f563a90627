"""An agent that comes back after its successor came is never heard: on a real LiveKit server, by a cut network."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from livekit import rtc

from backend.common.contract import AGENT_IDENTITY, EndReason, Order
from tests.livekit_server import LiveKitServer
from tests.running_call import a_call
from tests.valkey_server import free_port
from tests.waiting import wait_until_async

LONG = "One, two, three, four, five, six, seven, eight, nine, ten, and so on, " * 6
TAIL_SECONDS = 0.5
"""What was under way when the successor came may still be heard."""


class Wire:
    """A TCP connection to the LiveKit server that can be cut; sound goes its own way, as UDP does."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self._to = port
        self._is_cut = False
        self._ends: set[asyncio.StreamWriter] = set()

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    def cut(self) -> None:
        """Lose every connection, and take no new one."""
        self._is_cut = True
        for end in self._ends:
            end.close()

    def mend(self) -> None:
        self._is_cut = False

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._ends |= {writer, back}
        await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65_536):
            writer.write(chunk)
    writer.close()


@pytest.fixture
async def wire(livekit: LiveKitServer) -> AsyncIterator[Wire]:
    """Give a wire to the server."""
    wire = Wire(livekit.port)
    server = await wire.serve()
    yield wire
    server.close()
    wire.cut()


async def test_an_agent_that_waits_for_its_caller_is_not_heard_after_its_network_was_cut(
    livekit: LiveKitServer, wire: Wire
) -> None:
    async with a_call(livekit, url=f"ws://127.0.0.1:{wire.port}", was_awaited=True) as call:

        async def is_in() -> bool:
            return AGENT_IDENTITY in await livekit.people(call.room)

        await wait_until_async(is_in, what="the agent is in the room")
        wire.cut()
        call.link.may_speak = False  # the session is another agent's from now on
        successor = rtc.Room()
        await successor.connect(livekit.url, livekit.agent_token(call.room))
        wire.mend()
        caller = await call.caller_joins()
        assert await call.reason(within=25) is EndReason.AGENT_LOST
        assert call.link.begun == 0
        assert [one for one in caller.heard if one.loudness > 200] == []
        await successor.disconnect()


async def test_an_agent_whose_network_was_cut_meanwhile_is_not_heard_when_it_comes_back(
    livekit: LiveKitServer, wire: Wire
) -> None:
    """Its library reconnects by itself, and puts the successor out of the room: LiveKit's identities are no fence."""
    async with a_call(livekit, url=f"ws://127.0.0.1:{wire.port}") as call:
        caller = await call.caller_is_greeted()
        call.link.tell(Order.SAY, LONG)
        await caller.sound(since=time.monotonic())
        wire.cut()
        call.link.may_speak = False  # the session is another agent's from now on
        successor = rtc.Room()
        is_out = asyncio.Event()
        successor.on("disconnected", lambda *_: is_out.set())
        await successor.connect(livekit.url, livekit.agent_token(call.room))
        taken_at = time.monotonic()
        wire.mend()
        assert await call.reason(within=25) is EndReason.AGENT_LOST
        assert call.link.ended == []
        await wait_until_async(lambda: time.monotonic() > taken_at + 3, timeout=5, what="it had time to be heard")
        assert [one for one in caller.heard if one.at > taken_at + TAIL_SECONDS and one.loudness > 200] == []
        assert not caller.is_out.is_set()
        await successor.disconnect()
