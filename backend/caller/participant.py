"""A caller in a room: hears, reads what is shown, speaks and types."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType

from livekit import rtc
from livekit.rtc.participant import PublishTrackError

from backend.caller.devices import Devices
from backend.caller.errors import UnavailableError
from backend.caller.hearing import RATE, Ear
from backend.caller.speaking import QUEUE_MS, Mouth
from backend.caller.stages import Stage, Stages

CHAT, TRANSCRIPTION, STATE = "lk.chat", "lk.transcription", "lk.agent.state"
CONNECT_SECONDS = 10.0
LEAVE_SECONDS = 1.0
"""Leaving takes 0.15 s at most; a server that does not answer must not hold the caller."""
READ_SECONDS = 30.0
"""A transcript that is streamed word by word lasts as long as it is spoken."""
MOST_TRANSCRIPTS = 1_000


@dataclass(frozen=True)
class Transcript:
    """What somebody said, as it was shown."""

    speaker: str
    text: str = field(repr=False)
    is_final: bool
    segment: str
    is_own: bool = False
    """Whether it is what this caller said."""


class Participant:
    """One participant with a microphone. ``async with`` makes sure that it leaves."""

    def __init__(
        self,
        *,
        stages: Stages | None = None,
        ear: Ear | None = None,
        devices: Devices | None = None,
        on_transcript: Callable[[Transcript], None] = lambda _: None,
    ) -> None:
        self.room = rtc.Room()
        self.ear, self.mouth = ear or Ear(), Mouth()
        self.devices = devices
        self.stages = stages or Stages()
        self.is_out = asyncio.Event()
        """Set when it left, or was put out of, the room."""
        self.tracks: list[rtc.Track] = []
        """What of others can be heard."""
        self._on_transcript = on_transcript
        self._source: rtc.AudioSource | None = None
        self._microphone: rtc.LocalTrackPublication | None = None
        self._joining: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.room.on("participant_connected", self._on_participant)
        self.room.on("track_subscribed", self._on_track)
        self.room.on("disconnected", self._on_disconnected)
        self.room.register_text_stream_handler(TRANSCRIPTION, lambda *told: self._start(self._read(*told)))

    async def __aenter__(self) -> "Participant":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    async def join(self, url: str, token: str, *, with_microphone: bool = True) -> None:
        """Join, with a microphone that is silent until there is something to say. Raises: UnavailableError"""
        # Never cancelled: that leaves a ghost in the room, and LiveKit's library ends the process 15 s later.
        self._joining = asyncio.ensure_future(self.room.connect(url, token))
        # A failure that nobody waits for any more would be logged, with the token in it.
        self._joining.add_done_callback(lambda joining: joining.cancelled() or joining.exception())
        done, _ = await asyncio.wait({self._joining}, timeout=CONNECT_SECONDS)
        if not done:
            raise UnavailableError(f"LiveKit at {url} does not answer within {CONNECT_SECONDS:.0f} s")
        try:
            self._joining.result()
        except rtc.ConnectError as error:
            raise UnavailableError(f"LiveKit at {url} cannot be joined: {_status(error)}") from None
        self.stages.reach(Stage.CONNECTED)
        for person in self.room.remote_participants.values():
            self._on_participant(person)
        if with_microphone:
            await self._publish()

    async def leave(self) -> None:
        """Leave the room; again changes nothing."""
        if self._joining and not self._joining.done():
            await asyncio.wait({self._joining}, timeout=CONNECT_SECONDS)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        leaving = asyncio.ensure_future(self._disconnect())
        await asyncio.wait({leaving}, timeout=LEAVE_SECONDS)
        if self.devices:
            await self.devices.close()
        if self._source:
            await self._source.aclose()
            self._source = None

    @property
    def spoken_loudness(self) -> float:
        """How loud the caller is: root mean square of the last 16-bit samples."""
        return self.devices.loudness if self.devices else self.mouth.loudness

    async def type(self, text: str, *, topic: str = CHAT) -> None:
        """Send a typed message."""
        await self.room.local_participant.send_text(text, topic=topic)

    async def _publish(self) -> None:
        self._source = self.devices.source if self.devices else rtc.AudioSource(RATE, 1, queue_size_ms=QUEUE_MS)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        publishing = asyncio.ensure_future(self.room.local_participant.publish_track(track, options))
        out = asyncio.ensure_future(self.is_out.wait())
        try:
            await asyncio.wait({publishing, out}, return_when=asyncio.FIRST_COMPLETED)
            if self.is_out.is_set():  # whoever waits next hears of it; the library would go on for 10 s
                return
            self._microphone = publishing.result()
        except PublishTrackError:
            raise UnavailableError("LiveKit does not take the microphone") from None
        finally:
            for task in (publishing, out):
                task.cancel()
            await asyncio.gather(publishing, out, return_exceptions=True)
        if self.devices is None:
            self._start(self.mouth.speak(self._source))

    async def _disconnect(self) -> None:
        if self._microphone and self.room.isconnected():
            # Without it threads of the library stay behind, in a process that places many calls.
            await self.room.local_participant.unpublish_track(self._microphone.sid)
        await self.room.disconnect()

    def _on_participant(self, person: rtc.RemoteParticipant) -> None:
        if person.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
            self.stages.reach(Stage.AGENT_SEEN)

    def _on_track(self, track: rtc.Track, _: rtc.RemoteTrackPublication, person: rtc.RemoteParticipant) -> None:
        if track.kind != rtc.TrackKind.KIND_AUDIO:
            return
        self._on_participant(person)
        self.stages.reach(Stage.SUBSCRIBED)
        self.tracks.append(track)
        self._start(self.ear.listen(track))
        if self.devices:
            self._start(self.devices.play(track))
        self._start(self._note_first_sound())

    def _on_disconnected(self, *_: object) -> None:
        self.stages.reach(Stage.ENDED)
        self.is_out.set()

    async def _note_first_sound(self) -> None:
        self.stages.reach(Stage.FIRST_SOUND, await self.ear.sound())

    async def _read(self, reader: rtc.TextStreamReader, speaker: str) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                text = await reader.read_all()
        except (TimeoutError, rtc.StreamError):  # it was for the eye only; the call goes on
            return
        finally:
            reader.close()
        attributes = reader.info.attributes or {}
        is_final = attributes.get("lk.transcription_final") == "true"
        is_own = speaker == self.room.local_participant.identity
        self._on_transcript(Transcript(speaker, text, is_final, attributes.get("lk.segment_id", ""), is_own))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _status(error: Exception) -> str:
    """What of LiveKit's message may be shown: the message itself carries the token."""
    found = re.search(r"\b[45]\d\d\b", str(error))
    return f"status {found[0]}" if found else "it cannot be reached"
