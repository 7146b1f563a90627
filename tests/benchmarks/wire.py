"""A connection to Redis that costs next to nothing, for what measures Redis."""

import asyncio
from collections.abc import Sequence
from typing import Any

from backend.common import exchange as x


class Wire:
    """One connection that speaks just enough RESP2; redis-py would be what is measured otherwise."""

    def __init__(self, exchange: x.Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.exchange, self.reader, self.writer = exchange, reader, writer

    async def command(self, *parts: str | int) -> object:
        self.writer.write(_encode(parts))
        return await self.answer()

    async def answer(self) -> object:
        line = await self.reader.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind in (b"+", b":"):
            return rest.decode() if kind == b"+" else int(rest)
        if rest == b"-1":
            return None
        if kind == b"$":
            return (await self.reader.readexactly(int(rest) + 2))[:-2].decode()
        return [await self.answer() for _ in range(int(rest))]

    async def run(self, call: x.Call[x.Reply]) -> x.Reply:
        return call.read(await self.command(*self._parts(call)))

    async def run_all(self, calls: Sequence[x.Call[Any]]) -> list[Any]:
        """Make several calls in one write; Redis runs them one after the other."""
        self.writer.write(b"".join(_encode(self._parts(call)) for call in calls))
        return [call.read(await self.answer()) for call in calls]

    def _parts(self, call: x.Call[Any]) -> tuple[str | int, ...]:
        return ("EVALSHA", self.exchange.digests[call.operation], len(call.keys), *call.keys, *call.arguments)


def _encode(parts: Sequence[str | int]) -> bytes:
    raw = [str(part).encode() for part in parts]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in raw)


async def connect(exchange: x.Exchange, port: int) -> Wire:
    """Connect to the server on this machine, with the scripts loaded."""
    wire = Wire(exchange, *await asyncio.open_connection("127.0.0.1", port))
    for text in exchange.scripts.values():
        await wire.command("SCRIPT", "LOAD", text)
    return wire
