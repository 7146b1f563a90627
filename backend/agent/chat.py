"""What is typed and shown beside the sound, as LiveKit's own client components expect it.

``lk.chat`` in; ``lk.transcription`` and the participant attribute ``lk.agent.state`` out.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from livekit import rtc
from loguru import logger

CHAT, TRANSCRIPTION, STATE = "lk.chat", "lk.transcription", "lk.agent.state"
LONGEST_MESSAGE = 4_000
"""Characters; more than a person types, and less than half of what a prompt may have."""
READ_SECONDS = 5.0
SEND_SECONDS = 2.0
UNSENT_TRANSCRIPTS = 100
"""A room that takes none for so long is being lost; what is oldest then is of least use."""

State = Literal["initializing", "listening", "thinking", "speaking"]


@dataclass(kw_only=True)
class Segment:
    """One turn of one speaker on its way to the screen; the text grows until it is final."""

    speaker: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    text: str = field(default="", repr=False)
    is_final: bool = False


class Chat:
    """The text side of one call. Made before the room is joined; ``deliver`` does the sending."""

    def __init__(self, room: rtc.Room, is_caller: Callable[[str], bool], typed: Callable[[str], None]) -> None:
        self._room, self._is_caller, self._typed = room, is_caller, typed
        self._state: State = "initializing"
        self._shown_state: State | None = None
        self._segments: deque[Segment] = deque(maxlen=UNSENT_TRANSCRIPTS)
        self._has_news = asyncio.Event()
        self._has_news.set()
        self._reading: set[asyncio.Task[None]] = set()
        room.register_text_stream_handler(CHAT, self._on_stream)

    def show_state(self, state: State) -> None:
        """Tell clients what the agent is doing; only the latest is sent."""
        self._state = state
        self._has_news.set()

    def show(self, segment: Segment) -> None:
        """Tell clients what was said so far; an unfinished segment is sent once, as it then is."""
        if not any(waiting is segment for waiting in self._segments):
            self._segments.append(segment)
        self._has_news.set()

    async def deliver(self) -> None:
        """Send states and transcripts in order, until cancelled."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await self._send_news()
            except Exception as error:  # the library raises bare ones, and the call matters more
                logger.warning("a transcript or state was not delivered", error=type(error).__name__)

    async def _send_news(self) -> None:
        me = self._room.local_participant
        if self._state != self._shown_state:
            self._shown_state = self._state
            await me.set_attributes({STATE: self._state})
        while self._segments:
            segment = self._segments.popleft()
            # send_text() cannot name another speaker.
            stream = await me.stream_text(
                topic=TRANSCRIPTION,
                sender_identity=segment.speaker,
                attributes={
                    "lk.segment_id": segment.id,
                    "lk.transcription_final": "true" if segment.is_final else "false",
                },
            )
            await stream.write(segment.text)
            await stream.aclose()

    def _on_stream(self, reader: rtc.TextStreamReader, identity: str) -> None:
        if not self._is_caller(identity):
            reader.close()
            return
        task = asyncio.ensure_future(self._read(reader))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _read(self, reader: rtc.TextStreamReader) -> None:
        text = ""
        try:
            async with asyncio.timeout(READ_SECONDS):
                async for part in reader:
                    text += part
                    if len(text) > LONGEST_MESSAGE:
                        logger.warning("a typed message was too long", longest=LONGEST_MESSAGE)
                        return
        except (TimeoutError, rtc.StreamError) as error:
            logger.warning("a typed message was not read", error=type(error).__name__)
            return
        finally:
            reader.close()
        if text.strip():
            self._typed(text.strip())
