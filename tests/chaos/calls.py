"""The calls that are going on when something happens: one session each, its caller, and what the caller heard."""

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx2 as httpx
from livekit import rtc

from backend.caller.errors import UnavailableError
from backend.caller.hearing import Ear, loudness
from backend.caller.participant import Participant

STATES = ("live", "assigned", "being claimed", "waiting", "ending", "starting")
"""What a session was doing when it happened. ``starting``: its request was under way."""
START = "/orchestrator/session/start"
REQUEST_SECONDS = 5.0
"""Every answer is to come sooner; a frozen API answers nobody."""
PAUSE_SECONDS = 0.25
FAILED = -1.0
LIGHT_RATE, LIGHT_MS = 8_000, 50
QUIET_SECONDS = 1.0


class LightEar(Ear):
    """Hears in larger pieces: ten callers in one process are not to be what the machine is busy with."""

    async def listen(self, track: rtc.Track) -> None:
        """Hear a track until it ends or this is cancelled."""
        stream = rtc.AudioStream(track, sample_rate=LIGHT_RATE, num_channels=1, frame_size_ms=LIGHT_MS)
        try:
            async for event in stream:
                self.hear(time.monotonic(), loudness(event.frame.data))
        finally:
            await stream.aclose()


@dataclass(kw_only=True)
class CallInChaos:
    """One session, from its start to its bill."""

    state: str
    api: httpx.AsyncClient = field(repr=False)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    answer: dict[str, Any] = field(default_factory=dict)
    answered: str = ""
    """``assigned`` or ``waiting``, as the start was answered; '' while it was not."""
    caller: Participant | None = None
    is_over: bool = False
    """Whether its caller has ended it."""
    first_sound_at: float = FAILED
    """On the clock of time.monotonic(), as all times here."""
    refusals: list[tuple[float, int, bool]] = field(default_factory=list)
    """Seconds that a refused start took, its status (0: none came), and whether it said when to come again."""

    @property
    def session_id(self) -> str:
        return str(self.answer.get("sessionId", ""))

    async def start(self, *, within: float = 1.0) -> bool:
        """Ask for the session until it is there, always with the same key."""
        until = time.monotonic() + within
        while True:
            began = time.monotonic()
            status, says_when = 0, False
            try:
                answer = await self.api.post(
                    START, json={"userName": f"user {self.key[:8]}"}, headers={"Idempotency-Key": self.key}
                )
                status, says_when = answer.status_code, "retry-after" in answer.headers
                if status == 200 and answer.json()["token"]:
                    self.answer = answer.json()
                    self.answered = self.answered or self.answer["status"]
                    return True
            except httpx.HTTPError:
                pass  # noted below, and asked again
            self.refusals.append((time.monotonic() - began, status, says_when))
            if time.monotonic() > until:
                return False
            await asyncio.sleep(PAUSE_SECONDS)

    async def hear(self, *, within: float) -> bool:
        """Join and wait for the agent's first sound, whatever goes wrong at first."""
        until = time.monotonic() + within
        while self.answer and time.monotonic() < until:
            caller = Participant(ear=LightEar())
            try:
                await caller.join(self.answer["serverUrl"], self.answer["token"], with_microphone=False)
            except UnavailableError:
                await asyncio.sleep(2 * PAUSE_SECONDS)
                continue
            self.caller = caller
            return await self._first_sound(caller, until)
        return False

    async def _first_sound(self, caller: Participant, until: float) -> bool:
        out = asyncio.ensure_future(caller.is_out.wait())
        sound = asyncio.ensure_future(caller.ear.sound())
        await asyncio.wait({out, sound}, timeout=until - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if sound.done():
            self.first_sound_at = sound.result()
        for task in (out, sound):
            task.cancel()
        await asyncio.gather(out, sound, return_exceptions=True)
        return self.first_sound_at > 0

    @property
    def is_heard(self) -> bool:
        """Whether the agent sounds right now, in a room that was never left."""
        if self.caller is None or self.caller.is_out.is_set() or not self.caller.ear.utterances:
            return False
        return time.monotonic() - self.caller.ear.utterances[-1].ended < QUIET_SECONDS

    def silences(self, since: float) -> dict[float, float]:
        """When the agent was not heard, in seconds after that moment, and for how long each time, until now."""
        heard = list(self.caller.ear.utterances) if self.caller else []
        pauses = [(earlier.ended, later.began) for earlier, later in pairwise(heard) if later.began > since - 1]
        return {round(began - since, 2): ended - began for began, ended in pauses}

    async def show(self) -> dict[str, Any]:
        """The session's record as the API shows it; empty when it cannot be had."""
        try:
            answer = await self.api.get(f"/orchestrator/session/{self.session_id}")
        except httpx.HTTPError:
            return {}
        record: dict[str, Any] = answer.json()
        return record

    async def end(self) -> dict[str, Any]:
        """End it; the account, or nothing when the API did not answer."""
        try:
            answer = await self.api.post("/orchestrator/session/end", json={"sessionId": self.session_id})
        except httpx.HTTPError:
            return {}
        return dict(answer.json().get("details") or {})

    async def leave(self) -> None:
        """Let the caller go."""
        if self.caller:
            await self.caller.leave()
