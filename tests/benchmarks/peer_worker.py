"""The peer's agent: livekit-agents as its users run it in production, with a bot that plays a tone at once.

    .run/peer/bin/python tests/benchmarks/peer_worker.py start

Tuned in the peer's favour: as many idle processes as Greenroom has warm agents; the load by jobs, which its guide
advises where jobs are what fills a machine, and no threshold, so that no call is refused. This module imports nothing
but the framework: every job process imports it again.
"""

import array
import asyncio
import math
import os
from pathlib import Path

from livekit import rtc
from livekit.agents import AgentServer, JobContext, cli

RATE = 48_000
TONE_HZ, TONE_LEVEL = 440, 0.3
FRAME_SAMPLES = RATE // 10
"""A whole number of periods, and the frames that our own tone is made of: 20 ms ones cost twice as much."""
MOST_JOBS = 200
"""What counts as full. Low loads: with a high one the LiveKit server would not offer jobs at all."""

FRAME = array.array(
    "h",
    (round(TONE_LEVEL * 32_767 * math.sin(2 * math.pi * TONE_HZ * sample / RATE)) for sample in range(FRAME_SAMPLES)),
).tobytes()

server = AgentServer(
    num_idle_processes=int(os.environ["PEER_IDLE"]),
    load_fnc=lambda worker: len(worker.active_jobs) / MOST_JOBS,
    load_threshold=math.inf,
    host="127.0.0.1",
    port=int(os.environ["PEER_WORKER_PORT"]),
)


async def job(context: JobContext) -> None:
    """Join, publish, play; the framework ends the process when the room is deleted."""
    await context.connect()
    source = rtc.AudioSource(RATE, 1, queue_size_ms=100)
    track = rtc.LocalAudioTrack.create_audio_track("tone", source)
    options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    await context.room.local_participant.publish_track(track, options)
    playing = asyncio.create_task(play(source))
    (Path(os.environ["PEER_PIDS"]) / context.room.name).write_text(str(os.getpid()))

    async def stop() -> None:
        playing.cancel()

    context.add_shutdown_callback(stop)


async def play(source: rtc.AudioSource) -> None:
    """Play the tone until cancelled."""
    while True:
        await source.capture_frame(rtc.AudioFrame(FRAME, RATE, 1, FRAME_SAMPLES))


server.rtc_session(job, agent_name="tone")

if __name__ == "__main__":
    cli.run_app(server)
