"""A caller who spoke before the agent came is answered. The client here sends as LiveKit's own clients do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from livekit import rtc

from backend.agent.early_words import TOPIC
from tests.fakes.fake_speech import say
from tests.fakes.fake_vendors import FakeVendors
from tests.livekit_server import CALLER, LiveKitServer
from tests.running_call import a_call

# An agent's process ends with its call, and nobody closes the model's connections before.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

WEBM = (Path(__file__).parents[1] / "fakes" / "sounds" / "question.webm").read_bytes()
RATE, FRAME = 48_000, 960
CHUNK_BYTES = 15_000
GREETING = "One, two, three, four, five, six, seven, eight, nine, ten."


class EarlyCaller:
    """A client that records until an agent hears it, and sends that to the first agent; live it only sends silence."""

    def __init__(self, recorded: bytes, mime_type: str) -> None:
        self.room = rtc.Room()
        self._recorded, self._mime_type = recorded, mime_type
        self._agent: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._is_heard = asyncio.Event()
        self._source = rtc.AudioSource(RATE, 1, queue_size_ms=100)
        self._tasks: list[asyncio.Task[None]] = []
        self.room.on("participant_connected", self._on_participant)
        self.room.on("local_track_subscribed", lambda *_: self._is_heard.set())

    async def join(self, url: str, token: str) -> None:
        """Join, with a microphone that says that it is being recorded."""
        await self.room.connect(url, token)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, preconnect_buffer=True)
        publication = await self.room.local_participant.publish_track(track, options)
        for work in (self._be_silent(), self._send(publication.sid)):
            self._tasks.append(asyncio.ensure_future(work))

    async def leave(self) -> None:
        """Leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.room.disconnect()
        await self._source.aclose()

    def _on_participant(self, participant: rtc.RemoteParticipant) -> None:
        if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT and not self._agent.done():
            self._agent.set_result(participant.identity)

    async def _be_silent(self) -> None:
        while True:
            await self._source.capture_frame(rtc.AudioFrame(bytes(2 * FRAME), RATE, 1, FRAME))

    async def _send(self, track_id: str) -> None:
        agent = await self._agent
        stream = await self.room.local_participant.stream_bytes(
            "preconnect-buffer",
            mime_type=self._mime_type,
            topic=TOPIC,
            destination_identities=[agent],
            attributes={"trackId": track_id, "sampleRate": str(RATE), "channels": "1"},
        )
        for start in range(0, len(self._recorded), CHUNK_BYTES):
            await stream.write(self._recorded[start : start + CHUNK_BYTES])
        await self._is_heard.wait()
        await stream.aclose()


@asynccontextmanager
async def an_early_call(livekit: LiveKitServer, recorded: bytes, mime_type: str) -> AsyncIterator[Any]:
    """Let a caller speak in a room without an agent, then bring the agent."""
    room = await livekit.create_room()
    caller = EarlyCaller(recorded, mime_type)
    await caller.join(livekit.url, livekit.token(room, CALLER))
    async with FakeVendors() as vendors:
        vendors.transcripts, vendors.replies = ["How is the weather?"], ["It will be sunny."]
        urls = {name: getattr(vendors, name) for name in ("assembly_url", "groq_url", "inworld_url")}
        keys = dict.fromkeys(("assembly_api_key", "groq_api_key", "inworld_api_key"), "a-key")
        wishes: dict[str, Any] = {"room": room, "is_room_late": True, "voice": "vendors", **urls, **keys}
        wishes["opening_line"] = GREETING
        async with a_call(livekit, **wishes) as call:
            yield call
            await caller.leave()


@pytest.mark.parametrize(
    ("recorded", "mime_type"),
    [
        (WEBM, "audio/webm;codecs=opus"),
        (bytes(RATE) + say("how long have we been talking", RATE) + bytes(RATE), "application/octet-stream"),
    ],
    ids=["webm", "raw"],
)
async def test_what_was_said_before_the_agent_came_is_answered(
    livekit: LiveKitServer, recorded: bytes, mime_type: str
) -> None:
    async with an_early_call(livekit, recorded, mime_type) as call:
        await call.link.recorded("sunny")
        asked = next(turn for turn in call.link.turns if turn.role == "user")
        assert asked.text == "How is the weather?"


@pytest.mark.parametrize(
    ("recorded", "mime_type"),
    [(WEBM, "video/mp4"), (b"nonsense", "audio/webm;codecs=opus"), (bytes(2 * RATE), "application/octet-stream")],
    ids=["unknown", "broken", "silence"],
)
async def test_what_cannot_be_understood_changes_nothing(
    livekit: LiveKitServer, recorded: bytes, mime_type: str
) -> None:
    async with an_early_call(livekit, recorded, mime_type) as call:
        greeting = await call.link.recorded("ten")
        assert not greeting.interrupted
        assert [turn.role for turn in call.link.turns] == ["assistant"]
        assert not call.bot.done()
