"""One call, step by step: start, connect, hear, ask, end. What the command, benchmarks and tests are made of."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from backend.caller.devices import Devices
from backend.caller.errors import CallFailedError, PutOutError, UnansweredError, UnheardError
from backend.caller.participant import Participant, Transcript
from backend.caller.rest import Greenroom, Started
from backend.caller.stages import Stage, Stages

Result = TypeVar("Result")

Question = Callable[[Participant], Awaitable[float]]
"""Puts a question and returns the moment of its last sound, on the clock of ``time.monotonic()``."""

OVER_SECONDS = 0.7
"""So much silence, and the agent has finished: it pauses less between two sentences."""


class Caller:
    """One session and its caller. ``async with`` ends the session and leaves the room, whatever happens.

    Each step raises a CallFailedError whose ``outcome`` says what became of the call.
    """

    def __init__(
        self,
        greenroom: Greenroom,
        *,
        stages: Stages | None = None,
        devices: Devices | None = None,
        on_transcript: Callable[[Transcript], None] = lambda _: None,
    ) -> None:
        self.stages = stages or Stages()
        self.participant = Participant(stages=self.stages, devices=devices, on_transcript=on_transcript)
        self._greenroom = greenroom
        self._key = uuid.uuid4().hex
        self._starting: asyncio.Future[Started] | None = None
        self._has_ended = False

    async def __aenter__(self) -> "Caller":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(CallFailedError):  # then the session ends because its caller has left
            await self.end()
        await self.participant.leave()

    @property
    def started(self) -> Started | None:
        """What the API answered; None before, and when it refused."""
        if self._starting is None or not self._starting.done() or self._starting.cancelled():
            return None
        return None if self._starting.exception() else self._starting.result()

    async def start(self, **wish: Any) -> Started:
        """Start the session; ``wish`` holds the fields of the request. Every stage counts from here.

        Raises: RefusedError, UnavailableError
        """
        self.stages.begin()
        # An interruption lets it finish: who does not know the session cannot end it.
        self._starting = asyncio.ensure_future(self._greenroom.start(wish, key=self._key))
        started = await asyncio.shield(self._starting)
        self.stages.reach(Stage.ANSWERED)
        return started

    async def connect(self, *, with_microphone: bool = True) -> None:
        """Join the room. Raises: UnavailableError"""
        started = self._session()
        await self.participant.join(started.server_url, started.token, with_microphone=with_microphone)

    async def first_sound(self, *, within: float) -> float:
        """Wait until the agent is heard; returns milliseconds from the start.

        Raises: UnheardError, PutOutError
        """
        error = UnheardError(f"nothing was heard within {within:g} s")
        heard_at = await self.unless_out(self.participant.ear.sound(), within=within, error=error)
        self.stages.reach(Stage.FIRST_SOUND, heard_at)
        return self.stages.reached_ms[Stage.FIRST_SOUND]

    async def finished_speaking(self, *, within: float) -> None:
        """Wait until the agent has been silent for a while, or the time is over. Raises: PutOutError"""
        with contextlib.suppress(UnansweredError):
            silence = self.participant.ear.silence(seconds=OVER_SECONDS)
            await self.unless_out(silence, within=within, error=UnansweredError())

    async def ask(self, question: Question, *, within: float) -> float:
        """Put a question and wait for the answer's first sound; returns milliseconds from the question's end.

        Raises: UnansweredError, PutOutError
        """
        asked_at = await question(self.participant)
        error = UnansweredError(f"no answer was heard within {within:g} s")
        answer = await self.unless_out(self.participant.ear.utterance(since=asked_at), within=within, error=error)
        return (answer.began - asked_at) * 1000

    async def stay(self, *, seconds: float) -> None:
        """Stay for so long. Raises: PutOutError"""
        forever = asyncio.Event().wait()
        with contextlib.suppress(UnansweredError):
            await self.unless_out(forever, within=max(seconds, 0.0), error=UnansweredError())

    async def end(self) -> None:
        """End the session, if one was started; again changes nothing. Raises: RefusedError, UnavailableError"""
        if self._starting and not self._starting.done():
            await asyncio.wait({self._starting})  # it has a limit of its own
        if self._has_ended or self.started is None:
            return
        await self._greenroom.end(self.started.session_id)
        self._has_ended = True
        self.stages.reach(Stage.ENDED)

    async def show(self) -> dict[str, Any]:
        """Give the session's record as the API shows it. Raises: RefusedError, UnavailableError"""
        return await self._greenroom.show(self._session().session_id)

    async def unless_out(self, work: Coroutine[Any, Any, Result], *, within: float, error: CallFailedError) -> Result:
        """Wait for something for so many seconds, while the caller is in the room.

        Raises:
            PutOutError: the room was closed, or lost.
            CallFailedError: ``error``; it was not over in time.
        """
        doing, out = asyncio.ensure_future(work), asyncio.ensure_future(self.participant.is_out.wait())
        try:
            await asyncio.wait({doing, out}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise PutOutError("the room was closed or lost") if out.done() else error
        finally:
            for task in (doing, out):
                task.cancel()
            await asyncio.gather(doing, out, return_exceptions=True)

    def _session(self) -> Started:
        if self.started is None:
            raise RuntimeError("start() comes first")
        return self.started


def typed(text: str) -> Question:
    """A question that is typed."""

    async def put(participant: Participant) -> float:
        await participant.type(text)
        return time.monotonic()

    return put


def spoken(sound: bytes) -> Question:
    """A question that is said, as 16-bit mono at ``hearing.RATE``."""

    async def put(participant: Participant) -> float:
        return await participant.mouth.say(sound)

    return put
