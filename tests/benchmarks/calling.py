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
from dataclasses import asdict, dataclass
from typing import NoReturn

from livekit import rtc

from backend.caller import participant
from backend.caller.caller import Caller
from backend.caller.hearing import LOUD, RATE, Ear
from backend.caller.hearing import loudness as loudness_of
from backend.caller.rest import Greenroom
from backend.caller.stages import Stage

FRAME_MS = 10
FRAME_SAMPLES = RATE * FRAME_MS // 1000
LIGHT_PIECE_MS = 50
GAP_FRAMES = 6
"""60 ms: a jitter buffer conceals less, and nobody hears it."""
MOST_GAPS = 200
"""Told of one call; more say nothing more."""


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
    is_light: bool = False
    """Handle sound in larger pieces: a third of the processor time, and the first sound to 50 ms only."""


class StrictEar(Ear):
    """Tells of every gap in what should be heard without one."""

    def __init__(self, number: int, *, is_light: bool) -> None:
        super().__init__()
        self._number, self._piece_ms = number, LIGHT_PIECE_MS if is_light else FRAME_MS
        self._silent_frames, self._last_loud, self._gaps = 0, 0.0, 0

    async def listen(self, track: rtc.Track) -> None:
        """Hear a track, piece by piece, until it ends or this is cancelled."""
        stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1, frame_size_ms=self._piece_ms)
        try:
            async for event in stream:
                now = time.monotonic()
                for start in range(0, len(event.frame.data), FRAME_SAMPLES):
                    self.hear(now, loudness_of(event.frame.data[start : start + FRAME_SAMPLES]))
        finally:
            await stream.aclose()

    def hear(self, at: float, loudness: float) -> None:
        """Note one frame."""
        super().hear(at, loudness)
        if loudness <= LOUD:
            self._silent_frames += 1
            return
        if self._last_loud and self._silent_frames >= GAP_FRAMES and self._gaps < MOST_GAPS:
            self._gaps += 1
            missing, away = self._silent_frames * FRAME_MS / 1000, at - self._last_loud
            tell({"number": self._number, "stage": "gap", "at": at, "missing": missing, "away": away})
        self._silent_frames, self._last_loud = 0, at


async def call(order: Order) -> None:
    """Place the call and tell its stages; raises what makes it a lost one."""
    is_enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, is_enough.set)
    # A client has a microphone, and the machinery that comes with it, before it asks for a session.
    microphone = rtc.AudioSource(RATE, 1, queue_size_ms=1_000)
    participant.CONNECT_SECONDS = order.patience  # a burst is to be measured, not given up
    async with Greenroom(order.url) as greenroom, Caller(greenroom) as caller:
        caller.participant.ear = StrictEar(order.number, is_light=order.is_light)
        await asyncio.sleep(max(0.0, order.at - time.monotonic()))
        started = await caller.start(userName="benchmark")
        await caller.connect(with_microphone=not order.is_light)
        silence = asyncio.ensure_future(be_silent(caller.participant.room, microphone)) if order.is_light else None
        await caller.first_sound(within=order.at + order.patience - time.monotonic())
        began, reached = caller.stages.began, caller.stages.reached_ms
        stages = {str(stage): began + reached[stage] / 1000 for stage in Stage if stage in reached}
        tell({"number": order.number, "stage": "heard", "session": started.session_id, "began": began, **stages})
        waits = [asyncio.ensure_future(event.wait()) for event in (is_enough, caller.participant.is_out)]
        await asyncio.wait(waits, timeout=order.stay, return_when=asyncio.FIRST_COMPLETED)
        concealed = await concealed_seconds(caller.participant.tracks[-1])
        tell({"number": order.number, "stage": "over", "concealed_seconds": concealed})
        if silence:
            silence.cancel()


async def be_silent(room: rtc.Room, microphone: rtc.AudioSource) -> None:
    """Have a microphone and say nothing, in pieces of a tenth of a second."""
    track = rtc.LocalAudioTrack.create_audio_track("microphone", microphone)
    options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    await room.local_participant.publish_track(track, options)
    samples = RATE // 10
    while True:
        await microphone.capture_frame(rtc.AudioFrame(bytes(samples * 2), RATE, 1, samples))


async def concealed_seconds(track: rtc.Track) -> float:
    """How much of what was heard the jitter buffer had to make up."""
    for stats in await track.get_stats():
        if stats.WhichOneof("stats") == "inbound_rtp":
            return float(stats.inbound_rtp.inbound.concealed_samples) / RATE
    return 0.0


def tell(answer: dict[str, object]) -> None:
    """Write one line in one piece: all callers share a pipe, and less than its 4 KB come through whole."""
    os.write(1, json.dumps(answer).encode() + b"\n")


def be_caller(order: Order) -> NoReturn:
    """Place the call in this process, which ends with it."""
    code = 0
    try:
        asyncio.run(call(order))
    except BaseException as error:  # whatever it is, the call is lost and the process ends here
        tell({"number": order.number, "stage": "lost", "why": f"{type(error).__name__}: {error}"[:200]})
        code = 1
    finally:
        os._exit(code)


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
