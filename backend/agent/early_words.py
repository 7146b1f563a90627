"""What the caller said before the agent came: their client recorded it, and sends it to an agent that comes late.

LiveKit's clients do so where they are asked to (``preConnectBuffer``): a byte stream of 10 s at most,
which ends when the agent hears the microphone itself. An agent that was in the room first needs none.
"""

import asyncio
from collections.abc import Callable, Mapping

from livekit import rtc
from loguru import logger

from backend.agent import recorded

TOPIC = "lk.agent.pre-connect-audio-buffer"
WAIT_SECONDS = 1.5
"""So long the microphone's own sound may be held back. The stream usually ends within 0.2 s, and now and then never."""
READ_SECONDS = 1.0
"""Of these: what has come by then is taken as all."""
MOST_BYTES = 1_500_000
"""More than 10 s of raw samples at 48 kHz."""
MOST_SECONDS = 10
RATE = 16_000
"""The pipeline's own."""
_FRAME_SAMPLES = RATE // 50


class EarlyWords:
    """The early words of one call. Made before the room is joined, or the stream would find nobody."""

    def __init__(self, room: rtc.Room, is_caller: Callable[[str], bool]) -> None:
        self._is_caller = is_caller
        self._reading: asyncio.Task[bytes] | None = None
        self._has_come = asyncio.Event()
        room.register_byte_stream_handler(TOPIC, self._on_stream)

    async def frames(self) -> list[rtc.AudioFrame]:
        """Wait for the words, within bounds; nothing where none came or they cannot be read."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._has_come.wait()
                sound = await self._reading if self._reading else b""
        except TimeoutError:
            logger.warning("the caller's early words did not come in time", limit_seconds=WAIT_SECONDS)
            return []
        logger.info("the caller spoke early", milliseconds=len(sound) // 2 * 1000 // RATE)
        step = _FRAME_SAMPLES * 2
        whole = range(0, len(sound) - step + 1, step)
        return [rtc.AudioFrame(sound[start : start + step], RATE, 1, _FRAME_SAMPLES) for start in whole]

    def _on_stream(self, reader: rtc.ByteStreamReader, identity: str) -> None:
        if self._reading or not self._is_caller(identity):
            reader.close()
            return
        self._reading = asyncio.ensure_future(self._read(reader))
        self._has_come.set()

    async def _read(self, reader: rtc.ByteStreamReader) -> bytes:
        received = bytearray()
        try:
            async with asyncio.timeout(READ_SECONDS):
                async for part in reader:
                    received += part
                    if len(received) > MOST_BYTES:
                        break
        except (TimeoutError, rtc.StreamError) as error:
            logger.warning("the caller's early words did not come to an end", error=type(error).__name__)
        finally:
            reader.close()
        return await self._understood(bytes(received[:MOST_BYTES]), reader.info.mime_type, reader.info.attributes or {})

    async def _understood(self, received: bytes, mime_type: str, attributes: Mapping[str, str]) -> bytes:
        try:
            # Raw samples of several channels lie between each other, and no client sends such.
            rate = int(attributes.get("sampleRate", "0")) if attributes.get("channels", "1") == "1" else 0
            sound = await asyncio.to_thread(recorded.samples, received, mime_type, rate, wanted_rate=RATE)
        except ValueError as error:
            # A browser on iOS records MP4, for example. The words are lost, as they were for everyone before.
            logger.warning("the caller's early words cannot be read", mime_type=mime_type[:40], cause=str(error))
            return b""
        return sound[-MOST_SECONDS * RATE * 2 :]
