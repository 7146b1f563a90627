"""The session's room: joined by us, then handed to Pipecat, which by itself can only join rooms that it makes.

Pipecat 1.14 has no ``room=`` argument. Its private names that are used here stand in
tests/unit/test_pipecat_names.py, so that an upgrade fails there and not in a call.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable

from livekit import rtc
from livekit.rtc._proto.track_pb2 import AudioTrackFeature
from pipecat.transports.livekit.transport import LiveKitParams, LiveKitTransport, LiveKitTransportClient

from backend.agent.early_words import EarlyWords

CONNECT_SECONDS = 10.0
"""More than a busy server needs, less than the 15 s a confirm may take."""
NOT_YET_SECONDS = 5.0
"""How long a room may be missing: the API makes it after the claim, before it answers."""
ASK_AGAIN_SECONDS = 0.1
CAME_SECONDS = 0.3
LEAVE_SECONDS = 1.0
"""Leaving takes 0.15 s at most; a server that does not answer must not hold the process."""
HEARING_RATE = 16_000
"""What the pipeline's own ears want: the native library resamples for less than Python would."""
HEARING_FRAME_MS = 32
"""One window of the voice detector, which so decides at the same moments; 10 ms would be three times the work."""
OUTPUT_QUEUE_MS = 200
"""Pipecat says 'stopped speaking' up to one queue too early; below 200 ms a busy machine stutters."""
OUTPUT_CHUNK_MS = 100
"""Each chunk is a round trip into the native library; voices send more than this at once."""
LISTENER_SECONDS = 0.3
"""The way to the listener and their jitter buffer."""


class RoomNotJoinedError(Exception):
    """The room could not be joined. The message is a status or a word: the server's own carries the token."""


class RoomGoneError(RoomNotJoinedError):
    """There is no such room, and none came: no other agent could join it either."""


class Room(rtc.Room):
    """A room that is joined once, within bounds; Pipecat's own connect() then finds it joined."""

    async def join(self, url: str, token: str) -> None:
        """Join, unless it is joined; a room that does not exist yet is waited for.

        Raises:
            RoomGoneError: it does not exist.
            RoomNotJoinedError: also when the server does not answer. The attempt is then still
                under way, because cancelling it leaves a ghost in the room: end the process soon.
        """
        if self.isconnected():
            return
        until = time.monotonic() + NOT_YET_SECONDS
        while True:
            try:
                await self._join_once(url, token)
                return
            except rtc.ConnectError as error:
                status = re.search(r"\b[45]\d\d\b", str(error))
                if status is None or status[0] != "404":
                    raise RoomNotJoinedError(status[0] if status else "unreachable") from None
                if time.monotonic() > until:
                    raise RoomGoneError("404") from None
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    async def _join_once(self, url: str, token: str) -> None:
        joining = asyncio.ensure_future(super().connect(url, token, rtc.RoomOptions(auto_subscribe=True)))
        done, _ = await asyncio.wait({joining}, timeout=CONNECT_SECONDS)
        if not done:
            raise RoomNotJoinedError("no answer")
        joining.result()

    async def occupied(self, is_wanted: Callable[[str], bool], has_come: Callable[[], Awaitable[bool]]) -> None:
        """Wait until somebody whose identity is wanted is in the room, which is joined.

        ``has_come`` is asked too: of who publishes nothing we are told up to 3 s late.
        """
        came = asyncio.Event()

        def look(*_: rtc.RemoteParticipant) -> None:
            if any(map(is_wanted, self.remote_participants)):
                came.set()

        self.on("participant_connected", look)
        try:
            look()
            while not came.is_set() and not await has_come():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(came.wait(), CAME_SECONDS)
        finally:
            self.off("participant_connected", look)

    async def leave(self) -> None:
        """Leave, or let the server find out by itself."""
        leaving = asyncio.ensure_future(self.disconnect())
        await asyncio.wait({leaving}, timeout=LEAVE_SECONDS)

    async def connect(self, url: str, token: str, options: rtc.RoomOptions | None = None) -> None:
        """Do nothing in a room that is joined; never join a second time."""
        if not self.isconnected():
            raise rtc.ConnectError("the room was lost before the call began")


class JoinedClient(LiveKitTransportClient):
    """Pipecat's client over a room that is joined, hearing only the caller."""

    def __init__(
        self, room: Room, is_caller: Callable[[str], bool], transport: LiveKitTransport, early: EarlyWords | None
    ) -> None:
        known = transport._client
        super().__init__("", "", room.name, known._params, known._callbacks, known._transport_name)
        self._joined, self._is_caller, self._is_silenced = room, is_caller, False
        self._early, self._is_recorded = early, False
        self.published = asyncio.Event()

    @property
    def room(self) -> rtc.Room:
        """The joined room; the one that setup() makes is never connected."""
        return self._joined

    async def connect(self) -> None:  # type: ignore[override]  # the decorator's type is not worth having
        """Publish, without the retries' pauses of 4 to 10 s: the room is there or it is lost."""
        await LiveKitTransportClient.connect.__wrapped__(self)
        if self.published.is_set():  # input and output connect at the same time
            return
        self.published.set()
        # A microphone that was subscribed before setup() raised no event: without this the agent is deaf.
        for person in self.room.remote_participants.values():
            for publication in person.track_publications.values():
                if publication.track and person.identity not in self._audio_streams:
                    self._on_track_subscribed_wrapper(publication.track, publication, person)

    def _on_track_subscribed_wrapper(
        self, track: rtc.Track, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        if self._is_caller(participant.identity):  # a second microphone would speak in the caller's turns
            self._is_recorded = AudioTrackFeature.TF_PRECONNECT_BUFFER in publication.audio_features
            super()._on_track_subscribed_wrapper(track, publication, participant)

    async def _process_audio_stream(self, audio_stream: rtc.AudioStream, participant_id: str) -> None:
        """Hear what was said before the agent came, then the microphone, which is kept meanwhile."""
        early, self._early = self._early, None
        for frame in await early.frames() if early and self._is_recorded else ():
            await self._audio_queue.put((rtc.AudioFrameEvent(frame), participant_id))
        await super()._process_audio_stream(audio_stream, participant_id)

    async def _async_on_track_subscribed(
        self, track: rtc.Track, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        """Hear a microphone as the pipeline wants it; Pipecat's own way is 48 kHz in frames of 10 ms."""
        if track.kind != rtc.TrackKind.KIND_AUDIO or not self._task_manager:
            return
        identity = participant.identity
        await self._close_audio_stream(identity)  # a microphone that is published again
        stream = rtc.AudioStream(track, sample_rate=HEARING_RATE, num_channels=1, frame_size_ms=HEARING_FRAME_MS)
        task = self._task_manager.create_task(self._process_audio_stream(stream, identity), f"{self}::hear")
        self._audio_streams[identity] = (stream, task)
        await self._callbacks.on_audio_track_subscribed(identity)

    async def publish_audio(self, audio_frame: rtc.AudioFrame) -> bool:
        """Send a frame, or let its time pass while silenced."""
        if self._is_silenced:
            await asyncio.sleep(audio_frame.samples_per_channel / audio_frame.sample_rate)
            return True
        return await super().publish_audio(audio_frame)

    def silence(self, is_silenced: bool) -> None:
        """Stop or resume all sound at once, also what was queued."""
        self._is_silenced = is_silenced
        if is_silenced and self._audio_source:
            self._audio_source.clear_queue()


class JoinedTransport(LiveKitTransport):
    """Pipecat's transport over a room that is joined."""

    def __init__(self, room: Room, is_caller: Callable[[str], bool], early: EarlyWords | None = None) -> None:
        params = LiveKitParams(
            audio_in_enabled=True,
            audio_out_enabled=True,
            audio_out_queue_size_ms=OUTPUT_QUEUE_MS,
            audio_out_10ms_chunks=OUTPUT_CHUNK_MS // 10,
            audio_out_end_silence_secs=0,  # no graceful end is ever used, and it would add 2 s to one
        )
        super().__init__("", "", room.name, params)
        self._client: JoinedClient = JoinedClient(room, is_caller, self, early)

    async def published(self) -> None:
        """Wait until the agent's track is there."""
        await self._client.published.wait()

    async def subscribed(self) -> None:
        """Wait until someone subscribes to the agent's track, which is there, for the first time: they can hear."""
        # Never on participant_connected, which comes up to 3 s late when the caller publishes nothing.
        (publication,) = self._client.room.local_participant.track_publications.values()
        await publication.wait_for_subscription()

    async def played(self) -> None:
        """Wait, after 'stopped speaking', until the listener has heard the last word."""
        # AudioSource.wait_for_playout() would not do: it ends with the queue, before the listener's own buffer.
        await asyncio.sleep((OUTPUT_QUEUE_MS + OUTPUT_CHUNK_MS) / 1000 + LISTENER_SECONDS)

    def silence(self, is_silenced: bool) -> None:
        """Stop or resume all sound at once."""
        self._client.silence(is_silenced)
