"""A caller made of code: joins a room, speaks, types, and notes what it hears and reads."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from livekit import rtc

from tests.fakes.fake_speech import say
from tests.waiting import wait_until_async

RATE = 48_000
FRAME_MS = 20
LOUD = 200
"""Root mean square of 16-bit samples; a decoder's comfort noise is far below, speech far above."""


@dataclass(frozen=True)
class Heard:
    """Ten milliseconds of one speaker."""

    at: float
    """On the clock of time.monotonic()."""
    loudness: float


@dataclass(frozen=True)
class Read:
    """One transcript, as it was shown."""

    speaker: str
    text: str
    is_final: bool
    segment: str


class FakeCaller:
    """One participant with a microphone. ``async with`` makes sure that it leaves."""

    def __init__(self) -> None:
        self.room = rtc.Room()
        self.heard: list[Heard] = []
        self.read: list[Read] = []
        self.states: list[str] = []
        self.is_out = asyncio.Event()
        """Set when it left, or was put out of, the room."""
        self._source: rtc.AudioSource | None = None
        self._to_say = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self.room.on("track_subscribed", lambda track, _, __: self._start(self._listen(track)))
        self.room.on("participant_attributes_changed", self._on_attributes)
        self.room.on("disconnected", self.is_out.set)
        self.room.register_text_stream_handler("lk.transcription", lambda *told: self._start(self._read(*told)))

    async def __aenter__(self) -> "FakeCaller":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    async def join(self, url: str, token: str, *, with_microphone: bool = True) -> None:
        """Join, and send silence until there is something to say."""
        await self.room.connect(url, token)
        if not with_microphone:
            return
        self._source = rtc.AudioSource(RATE, 1, queue_size_ms=100)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self.room.local_participant.publish_track(track, options)
        self._start(self._speak(self._source))

    async def leave(self) -> None:
        """Leave the room; again changes nothing."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.room.disconnect()
        if self._source:
            await self._source.aclose()
            self._source = None

    async def say(self, text: str) -> float:
        """Say it aloud; returns the moment of the last sound."""
        self._to_say += say(text, RATE)
        await wait_until_async(lambda: not self._to_say, timeout=15, what="everything is said")
        return time.monotonic()

    async def type(self, text: str, *, topic: str = "lk.chat") -> None:
        """Send a typed message."""
        await self.room.local_participant.send_text(text, topic=topic)

    async def sound(self, *, since: float = 0.0, timeout: float = 10.0) -> float:  # noqa: ASYNC109  # see wait_until_async
        """Wait for the first sound after a moment; returns when it came."""

        def first() -> float | None:
            return next((step.at for step in self.heard if step.at >= since and step.loudness > LOUD), None)

        at = await wait_until_async(first, timeout=timeout, what="a sound is heard")
        assert at
        return at

    async def silence(
        self,
        *,
        seconds: float = 0.7,
        since: float = 0.0,
        timeout: float = 15.0,  # noqa: ASYNC109  # see above
    ) -> float:
        """Wait until nothing was heard for so long, counted from ``since`` at the earliest; returns the last sound."""

        def last() -> float:
            return max(since, next((step.at for step in reversed(self.heard) if step.loudness > LOUD), since))

        await wait_until_async(lambda: time.monotonic() - last() > seconds, timeout=timeout, what="it is silent")
        return last()

    async def utterance(self, *, since: float = 0.0) -> tuple[float, float]:
        """Wait for the next utterance and its end; returns the moments of its first and last sound."""
        first = await self.sound(since=since)
        return first, await self.silence()

    async def shown(self, words: str, *, speaker: str, timeout: float = 10.0) -> Read:  # noqa: ASYNC109  # see above
        """Wait for a final transcript that holds these words."""

        def found() -> Read | None:
            fitting = (read for read in self.read if read.is_final and words.lower() in read.text.lower())
            return next((read for read in fitting if read.speaker == speaker), None)

        read = await wait_until_async(found, timeout=timeout, what=f"{words!r} is shown among {self.read}")
        assert read
        return read

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1)
        try:
            async for event in stream:
                samples = np.frombuffer(event.frame.data, np.int16).astype(float)
                self.heard.append(Heard(time.monotonic(), float(np.sqrt((samples * samples).mean()))))
        finally:
            await stream.aclose()

    async def _speak(self, source: rtc.AudioSource) -> None:
        samples = RATE * FRAME_MS // 1000
        while True:
            part = bytes(self._to_say[: samples * 2]).ljust(samples * 2, b"\0")
            await source.capture_frame(rtc.AudioFrame(part, RATE, 1, samples))
            del self._to_say[: samples * 2]

    async def _read(self, reader: rtc.TextStreamReader, speaker: str) -> None:
        text = await reader.read_all()
        attributes = reader.info.attributes or {}
        is_final = attributes["lk.transcription_final"] == "true"
        self.read.append(Read(speaker, text, is_final, attributes["lk.segment_id"]))

    def _on_attributes(self, changed: dict[str, str], _: rtc.Participant) -> None:
        if "lk.agent.state" in changed:
            self.states.append(changed["lk.agent.state"])

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
