"""What a caller says into the room: silence, until there is something."""

import asyncio
import time
import wave
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from livekit import rtc

from backend.caller.hearing import LOUD, RATE, loudness

FRAME_SAMPLES = RATE // 50
FRAME_BYTES = FRAME_SAMPLES * 2
QUEUE_MS = 100
"""A busy machine stutters with less; more would be heard later."""
LONGEST_SECONDS = 600
"""A recording of 58 MB; what is longer is no question."""


class UnreadableError(Exception):
    """Raised when a file is not a recording that can be played."""


@dataclass(frozen=True)
class Recording:
    """Something to say: 16-bit mono at ``RATE``, without the silence at its end."""

    sound: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "Recording":
        """Read a WAV file of any rate and number of channels. Raises: UnreadableError"""
        try:
            with wave.open(str(path), "rb") as file:
                width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
                if file.getnframes() > LONGEST_SECONDS * rate:
                    raise UnreadableError(f"{path} is longer than {LONGEST_SECONDS} s")
                content = file.readframes(file.getnframes())
        except (OSError, EOFError, wave.Error) as error:
            raise UnreadableError(f"{path} is no WAV file that can be read: {error}") from None
        if width != 2:
            raise UnreadableError(f"{path} has {width * 8} bits a sample: only 16 can be played")
        sound = _without_silence_at_the_end(_resample(_mix(content, channels), rate))
        if not sound:
            raise UnreadableError(f"{path} is silent")
        return cls(sound)


class Mouth:
    """Feeds one audio source, in real time. While there is nothing to say LiveKit's library sends silence itself."""

    def __init__(self) -> None:
        self.loudness = 0.0
        self._to_say = bytearray()
        self._has_words = asyncio.Event()
        self._said = asyncio.Event()
        self._said_at = 0.0

    async def say(self, sound: bytes) -> float:
        """Say 16-bit mono sound at ``RATE``; returns the moment at which the last of it left."""
        self._to_say += sound
        self._said.clear()
        self._has_words.set()
        await self._said.wait()
        return self._said_at

    async def speak(self, source: rtc.AudioSource) -> None:
        """Send what is to be said, until cancelled."""
        while True:
            await self._has_words.wait()
            part = bytes(self._to_say[:FRAME_BYTES])
            del self._to_say[:FRAME_BYTES]
            self.loudness = loudness(part)
            await source.capture_frame(rtc.AudioFrame(part.ljust(FRAME_BYTES, b"\0"), RATE, 1, FRAME_SAMPLES))
            if not self._to_say:
                self._rest(source)

    def _rest(self, source: rtc.AudioSource) -> None:
        self.loudness = 0.0
        self._said_at = time.monotonic() + source.queued_duration
        self._has_words.clear()
        self._said.set()


def _mix(content: bytes, channels: int) -> bytes:
    samples = np.frombuffer(content, "<i2")
    whole = samples[: len(samples) // channels * channels].reshape(-1, channels)
    return bytes(whole.mean(axis=1).astype(np.int16).tobytes())


def _resample(sound: bytes, rate: int) -> bytes:
    if rate == RATE or not sound:
        return sound
    resampler = rtc.AudioResampler(rate, RATE, quality=rtc.AudioResamplerQuality.HIGH)
    frames = resampler.push(bytearray(sound)) + resampler.flush()
    return b"".join(bytes(frame.data.cast("b")) for frame in frames)


def _without_silence_at_the_end(sound: bytes) -> bytes:
    """The answer is timed from the last word."""
    frames = [sound[start : start + FRAME_BYTES] for start in range(0, len(sound), FRAME_BYTES)]
    while frames and loudness(frames[-1]) <= LOUD:
        frames.pop()
    return b"".join(frames)
