"""A caller made of code: joins a room, speaks, types, and notes what it hears and reads."""

import asyncio
from dataclasses import dataclass

from livekit import rtc

from backend.caller.hearing import LOUD, RATE, Ear
from backend.caller.participant import STATE, Participant, Transcript
from tests.fakes.fake_speech import say
from tests.waiting import wait_until_async

__all__ = ["LOUD", "RATE", "FakeCaller"]


@dataclass(frozen=True)
class Heard:
    """Ten milliseconds of one speaker."""

    at: float
    """On the clock of time.monotonic()."""
    loudness: float


class Memory(Ear):
    """An ear that forgets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Heard] = []

    def hear(self, at: float, loudness: float) -> None:
        """Note one frame."""
        super().hear(at, loudness)
        self.heard.append(Heard(at, loudness))


class FakeCaller(Participant):
    """One participant with a microphone. ``async with`` makes sure that it leaves."""

    def __init__(self) -> None:
        self._memory = Memory()
        self.read: list[Transcript] = []
        self.states: list[str] = []
        super().__init__(ear=self._memory, on_transcript=self.read.append)
        self.room.on("participant_attributes_changed", self._on_attributes)

    @property
    def heard(self) -> list[Heard]:
        """All that was heard, in order."""
        return self._memory.heard

    async def __aenter__(self) -> "FakeCaller":
        return self

    async def say(self, text: str) -> float:
        """Say it aloud; returns the moment of the last sound."""
        async with asyncio.timeout(15):
            return await self.mouth.say(say(text, RATE))

    async def sound(self, *, since: float = 0.0, timeout: float = 10.0) -> float:  # noqa: ASYNC109  # see wait_until_async
        """Wait for the first sound after a moment; returns when it came."""
        async with asyncio.timeout(timeout):
            return await self.ear.sound(since=since)

    async def silence(
        self,
        *,
        seconds: float = 0.7,
        since: float = 0.0,
        timeout: float = 15.0,  # noqa: ASYNC109  # see above
    ) -> float:
        """Wait until nothing was heard for so long, counted from ``since`` at the earliest; returns the last sound."""
        async with asyncio.timeout(timeout):
            return await self.ear.silence(seconds=seconds, since=since)

    async def utterance(self, *, since: float = 0.0) -> tuple[float, float]:
        """Wait for the next utterance and its end; returns the moments of its first and last sound."""
        first = await self.sound(since=since)
        return first, await self.silence()

    async def shown(self, words: str, *, speaker: str, timeout: float = 10.0) -> Transcript:  # noqa: ASYNC109  # see above
        """Wait for a final transcript that holds these words."""

        def found() -> Transcript | None:
            fitting = (read for read in self.read if read.is_final and words.lower() in read.text.lower())
            return next((read for read in fitting if read.speaker == speaker), None)

        read = await wait_until_async(found, timeout=timeout, what=f"{words!r} is shown")
        assert read
        return read

    def _on_attributes(self, changed: dict[str, str], _: rtc.Participant) -> None:
        if STATE in changed:
            self.states.append(changed[STATE])
