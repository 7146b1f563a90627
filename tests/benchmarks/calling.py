"""One process per caller: ``python -m tests.benchmarks.calling`` takes orders on standard input, a line of JSON each.

Many calls in one process would wait for each other, and be measured so. Each order is a fork of this process, which
has imported everything and started nothing; it answers with lines of JSON on standard output. At the end of standard
input every caller is ended with it.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import aiohttp
import numpy as np
from livekit import rtc

RATE = 48_000
FRAME_MS = 10
LOUD = 600
"""Peak of 16-bit samples; a decoder's comfort noise is far below, a tone or speech far above."""
GAP_FRAMES = 6
"""60 ms: a jitter buffer conceals less, and nobody hears it."""
MOST_GAPS = 200
"""Told of one call; more say nothing more."""
HTTP_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """One call to place."""

    number: int
    url: str
    """Of the API that is asked for a session."""
    at: float
    """When to ask, on the clock of time.monotonic(), which all processes of a machine share."""
    patience: float = 40.0
    """Seconds from the request after which a call without a sound is lost."""
    stay: float = 2.0
    """Seconds from the first sound to the request for the end, unless the room is closed before."""


class Caller:
    """One call, from the request to the end. Every time is of time.monotonic(), in seconds."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._room = rtc.Room()
        # A client has its microphone, and the machinery that comes with it, before it asks for a session.
        self._source = rtc.AudioSource(RATE, 1, queue_size_ms=100)
        self._microphone = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        self._heard: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._is_over = asyncio.Event()
        self._subscribed = 0.0
        self._silent_frames, self._last_loud = 0, 0.0
        self._gaps = 0
        self._track: rtc.RemoteTrack | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._room.on("track_subscribed", self._on_track)
        self._room.on("disconnected", lambda *_: self._is_over.set())

    async def call(self) -> None:
        """Place the call and tell its stages; raises what makes it a lost one."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._is_over.set)
        timeout = aiohttp.ClientTimeout(total=HTTP_SECONDS)
        async with aiohttp.ClientSession(self._order.url, timeout=timeout) as http:
            await asyncio.sleep(max(0.0, self._order.at - time.monotonic()))
            began = time.monotonic()
            session = await _post(http, "start", {"userName": "benchmark"})
            answered = time.monotonic()
            await self._room.connect(session["serverUrl"], session["token"])
            connected = time.monotonic()
            try:
                self._start(self._be_silent())
                heard = await asyncio.wait_for(self._heard, began + self._order.patience - time.monotonic())
                stages = {"began": began, "answered": answered, "connected": connected, "heard": heard}
                self._tell("heard", session=session["sessionId"], subscribed=self._subscribed, **stages)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._is_over.wait(), self._order.stay)
                self._tell("over", concealed_seconds=await self._concealed_seconds())
            finally:
                await _post(http, "end", {"sessionId": session["sessionId"]})
                await self._leave()

    def _tell(self, stage: str, **fields: object) -> None:
        tell({"number": self._order.number, "stage": stage, **fields})

    def _on_track(self, track: rtc.RemoteTrack, *_: object) -> None:
        self._subscribed, self._track = time.monotonic(), track
        self._start(self._listen(track))

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1, frame_size_ms=FRAME_MS)
        async for event in stream:
            if int(np.frombuffer(event.frame.data, np.int16).max(initial=0)) < LOUD:
                self._silent_frames += 1
                continue
            now = time.monotonic()
            if not self._heard.done():
                self._heard.set_result(now)
            elif self._silent_frames >= GAP_FRAMES:
                self._tell_gap(now)
            self._silent_frames, self._last_loud = 0, now

    def _tell_gap(self, now: float) -> None:
        """When the sound was back, how much of it was missing, and for how long it was away by the clock."""
        self._gaps += 1
        if self._gaps <= MOST_GAPS:
            missing = self._silent_frames * FRAME_MS / 1000
            self._tell("gap", at=now, missing=missing, away=now - self._last_loud)

    async def _be_silent(self) -> None:
        """Be a caller with a microphone who says nothing."""
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self._room.local_participant.publish_track(self._microphone, options)
        samples = RATE // 50
        while True:
            await self._source.capture_frame(rtc.AudioFrame(bytes(samples * 2), RATE, 1, samples))

    async def _concealed_seconds(self) -> float:
        """How much of what was heard the jitter buffer had to make up."""
        for stats in await self._track.get_stats() if self._track else ():
            if stats.WhichOneof("stats") == "inbound_rtp":
                return float(stats.inbound_rtp.inbound.concealed_samples) / RATE
        return 0.0

    async def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._room.disconnect(), 1)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)


async def _post(http: aiohttp.ClientSession, what: str, body: dict[str, str]) -> dict[str, str]:
    async with http.post(f"/orchestrator/session/{what}", json=body) as answer:
        if answer.status != 200 and what == "start":
            raise ConnectionError(f"answered {answer.status}")
        answered: dict[str, str] = await answer.json()
        return answered


def tell(answer: dict[str, object]) -> None:
    """Write one line in one piece."""
    os.write(1, json.dumps(answer).encode() + b"\n")


def be_caller(order: Order) -> NoReturn:
    """Place the call in this process, which ends with it."""
    code = 0
    try:
        asyncio.run(_place(order))
    except BaseException as error:  # whatever it is, the call is lost and the process ends here
        tell({"number": order.number, "stage": "lost", "why": f"{type(error).__name__}: {error}"[:200]})
        code = 1
    finally:
        os._exit(code)


async def _place(order: Order) -> None:
    await Caller(order).call()


def main() -> None:
    """Fork a caller for each order."""
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us ends us
    pids: dict[int, int] = {}
    for line in sys.stdin:
        _reap()
        wish = json.loads(line)
        if "end" in wish:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[wish["end"]], signal.SIGTERM)
            continue
        order = Order(**wish)
        pid = os.fork()
        if pid == 0:
            be_caller(order)
        pids[order.number] = pid
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGKILL)


def _reap() -> None:
    # Not ignored: what ended callers used is then counted with this process.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def write_order(order: Order) -> str:
    """The line that orders it."""
    return json.dumps(asdict(order)) + "\n"


if __name__ == "__main__":
    main()
