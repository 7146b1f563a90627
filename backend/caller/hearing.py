"""What a caller hears, as utterances: when each began and ended."""

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from livekit import rtc

RATE = 48_000
LOUD = 200
"""Root mean square of 16-bit samples; a decoder's comfort noise is far below, speech far above."""
PAUSE_SECONDS = 0.2
"""Less silence than this is part of an utterance: between two words there is as much."""
MOST_UTTERANCES = 1_000
"""What is older is forgotten; nobody asks for it in a call of hours."""
SILENCE_DB = -90.0


@dataclass
class Utterance:
    """From the first to the last sound; moments of ``time.monotonic()``."""

    began: float
    ended: float


class Ear:
    """Notes what is heard, ten milliseconds at a time."""

    def __init__(self) -> None:
        self.loudness = 0.0
        self.utterances: deque[Utterance] = deque(maxlen=MOST_UTTERANCES)
        self._heard = asyncio.Event()

    async def listen(self, track: rtc.Track) -> None:
        """Hear a track until it ends or this is cancelled."""
        stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1)
        try:
            async for event in stream:
                self.hear(time.monotonic(), loudness(event.frame.data))
        finally:
            await stream.aclose()

    def hear(self, at: float, loudness: float) -> None:
        """Note one frame."""
        self.loudness = loudness
        if loudness <= LOUD:
            return
        if self.utterances and at - self.utterances[-1].ended <= PAUSE_SECONDS:
            self.utterances[-1].ended = at
        else:
            self.utterances.append(Utterance(at, at))
        self._heard.set()

    async def sound(self, *, since: float = 0.0) -> float:
        """Wait for sound after a moment, also when it is in the midst of an utterance; returns when it came."""
        while True:
            for utterance in self.utterances:
                if utterance.ended >= since:
                    return max(utterance.began, since)
            await self._next_sound()

    async def utterance(self, *, since: float) -> Utterance:
        """Wait for an utterance that begins after a moment."""
        while True:
            for utterance in self.utterances:
                if utterance.began >= since:
                    return utterance
            await self._next_sound()

    async def silence(self, *, seconds: float, since: float = 0.0) -> float:
        """Wait until nothing was heard for so long, counted from ``since`` at the earliest; returns the last sound."""
        while True:
            last = max(since, self.utterances[-1].ended if self.utterances else since)
            remaining = last + seconds - time.monotonic()
            if remaining < 0:
                return last
            await asyncio.sleep(remaining + 0.001)

    async def _next_sound(self) -> None:
        self._heard.clear()
        await self._heard.wait()


def loudness(sound: bytes | memoryview) -> float:
    """Root mean square of 16-bit samples."""
    samples = np.frombuffer(sound, np.int16).astype(np.float32)
    return math.sqrt(float(np.dot(samples, samples)) / len(samples)) if len(samples) else 0.0


def decibels(loudness: float) -> float:
    """Below full scale, ``SILENCE_DB`` at the least."""
    return max(SILENCE_DB, 20 * math.log10(max(loudness, 1e-9) / 32_768))
