"""Callers who come as they like, all in this process: each calls, listens, and ends its call.

A client of the API repeats what got no answer or 503, with the same key; so do these.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from backend.caller import participant
from backend.caller.caller import Caller
from backend.caller.errors import CallFailedError, RefusedError, UnavailableError
from backend.caller.rest import Greenroom

SHORTEST, LONGEST = 5.0, 30.0
"""Seconds of a call, from its first sound."""
PATIENCE_SECONDS = 40.0
"""Longer than a session may wait for its agent, so that it is not the caller who gives up."""
REPEAT_SECONDS = 40.0
"""How long a client repeats a request: longer than any program takes to be back."""
PAUSE_SECONDS = 0.5

Answer = TypeVar("Answer")


@dataclass(kw_only=True)
class Placed:
    """One call as its caller had it; moments of ``time.monotonic()``."""

    number: int
    seconds: float
    """What was meant to pass between the first sound and the end."""
    session_id: str = ""
    refused: str = ""
    """Why no session was started; '' when one was."""
    failed: str = ""
    """What went wrong after the start; '' when the caller ended the call as it meant to."""
    first_sound_at: float | None = None
    ended_at: float | None = None
    """When the end was answered, or the caller was put out."""
    sounds: list[tuple[float, float]] = field(default_factory=list)
    """From when to when something was heard, with no silence of more than 0.2 s in it."""

    @property
    def heard_seconds(self) -> float:
        """How long an agent was heard."""
        return sum(ended - began for began, ended in self.sounds)

    @property
    def held_seconds(self) -> float:
        """From the first sound to the end, whatever was heard."""
        return 0.0 if self.first_sound_at is None or self.ended_at is None else self.ended_at - self.first_sound_at

    @property
    def longest_silence(self) -> float:
        """The longest that the caller heard nothing between two sounds."""
        return max(
            (after[0] - before[1] for before, after in zip(self.sounds, self.sounds[1:], strict=False)), default=0.0
        )


class Calls:
    """Every call of a run. ``arrive`` lets callers come until it is cancelled."""

    def __init__(self, url: str, *, seed: int) -> None:
        self.placed: list[Placed] = []
        self.faults: list[BaseException] = []
        """Of the callers themselves: a run that has any says nothing."""
        self._url = url
        self._draw = random.Random(f"calls {seed}")  # noqa: S311  # a test's
        self._under_way: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    async def arrive(self, *, per_minute: float) -> None:
        """Let a caller come at random moments, for ever."""
        while True:
            await asyncio.sleep(self._draw.expovariate(per_minute / 60))
            call = Placed(number=len(self.placed) + 1, seconds=self._draw.uniform(SHORTEST, LONGEST))
            self.placed.append(call)
            task = asyncio.ensure_future(self._place(call))
            self._under_way.add(task)
            task.add_done_callback(self._done)

    async def finish(self, *, within: float) -> int:
        """Wait for those under way; returns how many did not come to an end."""
        if self._under_way:
            await asyncio.wait(tuple(self._under_way), timeout=within)
        return len(self._under_way)

    async def _place(self, call: Placed) -> None:
        async with Greenroom(self._url) as greenroom:
            await place(greenroom, call)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.faults.append(error)


async def place(greenroom: Greenroom, call: Placed) -> None:
    """Call, listen for the time that was meant, end."""
    participant.CONNECT_SECONDS = PATIENCE_SECONDS  # it is not the caller who gives up
    async with Caller(greenroom) as caller:
        try:
            started = await repeated(lambda: caller.start(userName=f"soak {call.number}"))
        except CallFailedError as error:
            call.refused = str(error)
            return
        call.session_id = started.session_id
        try:
            await caller.connect(with_microphone=False)
            await caller.first_sound(within=PATIENCE_SECONDS)
            call.first_sound_at = caller.participant.ear.utterances[0].began
            await caller.stay(seconds=call.seconds)
        except CallFailedError as error:
            call.failed = f"{type(error).__name__}: {error}"
            call.ended_at = time.monotonic()
        try:
            await repeated(caller.end)
        except CallFailedError as error:
            call.failed = call.failed or f"the end was not answered: {error}"
        call.ended_at = call.ended_at or time.monotonic()
        call.sounds = [(sound.began, min(sound.ended, call.ended_at)) for sound in caller.participant.ear.utterances]


async def repeated(request: Callable[[], Awaitable[Answer]]) -> Answer:
    """Make a request until it is answered otherwise than by 5xx. Raises: CallFailedError, the last one"""
    until = time.monotonic() + REPEAT_SECONDS
    while True:
        try:
            return await request()
        except RefusedError:
            raise
        except UnavailableError:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(PAUSE_SECONDS)
