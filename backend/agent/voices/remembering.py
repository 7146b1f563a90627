"""A voice that remembers how it spoke its opening line, and does not ask its vendor for it again.

What comes from memory takes the way of what comes from the vendor: the same frames in an audio context of Pipecat's.
So words are shown and counted as they are heard, an interruption cuts both alike, and the first sound of both is held
until the caller can hear it.
"""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loguru import logger
from pipecat.frames.frames import ErrorFrame, Frame, TTSAudioRawFrame, TTSSpeakFrame, TTSStartedFrame, TTSStoppedFrame
from pipecat.processors.frame_processor import FrameDirection
from pipecat.utils.context.word_timestamp_tracker import WordTimestamp
from pipecat.utils.types import is_given

from backend.agent.voices.opening_lines import OpeningLines, Speech, Word
from backend.agent.voices.shared import Held

FIND_SECONDS = 0.1
"""A disk takes 1 ms; one that takes longer than this is no quicker than a vendor."""
_CHUNK_SECONDS = 0.2
"""The sound comes in pieces, so that an interruption need not wait for its end."""


@dataclass(kw_only=True)
class _Recording:
    """The line while the vendor speaks it."""

    context_id: str = ""
    sound: bytearray = field(default_factory=bytearray, repr=False)
    rate: int = 0
    words: list[WordTimestamp] = field(default_factory=list, repr=False)


class Remembering(Held):
    """Over any voice that times its words: without the times nobody knows what was heard of a line that was cut."""

    def __init__(self, *, sounds_by: Mapping[str, object], secret: str = "", **options: Any) -> None:
        """``sounds_by``: what the sound depends on, beside class, settings and rate; ``secret``: the account's key."""
        super().__init__(**options)
        self._sounds_by, self._secret = sounds_by, secret
        self._line = ""
        self._lines: OpeningLines | None = None
        self._speech: Speech | None = None
        """What is being spoken from memory."""
        self._recalled: set[str] = set()
        """Audio contexts that the vendor knows nothing of."""
        self._recording: _Recording | None = None

    def remember(self, line: str, lines: OpeningLines) -> None:
        """Speak this line from ``lines`` where it is there, and keep it there where it is not."""
        self._line, self._lines = line, lines

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Speak the line from memory, or record it; leave everything else to the voice."""
        if not (self._lines and isinstance(frame, TTSSpeakFrame) and frame.text == self._line):
            await super().process_frame(frame, direction)
            return
        self._speech = await self._find(self._lines)
        self._recording = None if self._speech else _Recording()
        try:
            await super().process_frame(frame, direction)
        finally:
            self._speech = None

    async def on_turn_context_created(self, context_id: str) -> None:
        """Let the vendor prepare, unless it is not asked."""
        if self._speech:
            self._recalled.add(context_id)
            return
        if self._recording and not self._recording.context_id:
            self._recording.context_id = context_id
        await super().on_turn_context_created(context_id)

    async def tts_process_generator(self, context_id: str, generator: AsyncGenerator[Frame | None, None]) -> None:
        """Give what the vendor would give."""
        if not self._speech:
            await super().tts_process_generator(context_id, generator)
            return
        await generator.aclose()
        await self._recite(self._speech, context_id)

    async def on_turn_context_completed(self) -> None:
        """Let the vendor finish, unless it was not asked."""
        if not self._speech:
            await super().on_turn_context_completed()  # type: ignore[no-untyped-call]  # Pipecat's

    async def append_to_audio_context(self, context_id: str | None, frame: Frame | WordTimestamp | None) -> None:
        """Note what the line sounds like, and pass it on."""
        if self._recording and context_id and context_id == self._recording.context_id:
            self._note(self._recording, frame)
        await super().append_to_audio_context(context_id, frame)

    async def on_audio_context_interrupted(self, context_id: str) -> None:
        """Forget half a line."""
        self._drop(context_id)
        if context_id not in self._recalled:
            await super().on_audio_context_interrupted(context_id)

    async def on_audio_context_completed(self, context_id: str) -> None:
        """Forget a line that fell silent before its end."""
        self._drop(context_id)
        await super().on_audio_context_completed(context_id)

    async def push_error_frame(self, error: ErrorFrame, force_treat_as_permanent: bool = False) -> None:
        """Forget a line in which something went wrong."""
        self._recording = None
        await super().push_error_frame(error, force_treat_as_permanent)

    async def _recite(self, speech: Speech, context_id: str) -> None:
        if not self.audio_context_available(context_id):  # some services open it in run_tts
            await self.create_audio_context(context_id)
            await self.append_to_audio_context(context_id, TTSStartedFrame(context_id=context_id))
        words = [(self._line[word.first : word.first + word.length], word.at_ms / 1000) for word in speech.words]
        await self.add_word_timestamps(words, context_id)
        step = int(speech.rate * _CHUNK_SECONDS) * 2
        for start in range(0, len(speech.sound), step):
            part = TTSAudioRawFrame(speech.sound[start : start + step], speech.rate, 1, context_id=context_id)
            await self.append_to_audio_context(context_id, part)
        await self.append_to_audio_context(context_id, TTSStoppedFrame(context_id=context_id))
        await self.remove_audio_context(context_id)

    def _note(self, recording: _Recording, frame: Frame | WordTimestamp | None) -> None:
        match frame:
            case TTSAudioRawFrame() if frame.num_channels == 1 and recording.rate in (0, frame.sample_rate):
                recording.sound += frame.audio
                recording.rate = frame.sample_rate
            case WordTimestamp():
                recording.words.append(frame)
            case TTSStoppedFrame():
                self._keep(recording)
                self._recording = None
            case TTSAudioRawFrame() | ErrorFrame() | None:  # the end without a stop: the connection broke
                self._recording = None

    def _keep(self, recording: _Recording) -> None:
        words = _places(self._line, recording.words)
        if not (self._lines and recording.sound and words):
            logger.debug("the opening line cannot be kept: without sound, or its words are not timed")
            return
        speech = Speech(sound=bytes(recording.sound), rate=recording.rate, words=words)
        # Nobody waits for it, and it sees to its own faults.
        asyncio.get_running_loop().run_in_executor(None, self._lines.keep, self._key(), speech)

    def _drop(self, context_id: str) -> None:
        if self._recording and self._recording.context_id == context_id:
            self._recording = None

    async def _find(self, lines: OpeningLines) -> Speech | None:
        try:
            async with asyncio.timeout(FIND_SECONDS):
                return await asyncio.to_thread(lines.find, self._key())
        except TimeoutError:
            logger.warning("a kept opening line was not read in time", limit_seconds=FIND_SECONDS)
            return None

    def _key(self) -> str:
        """Name the line by a hash that only the vendor account's owner can make, where there is an account."""
        given = {name: value for name, value in vars(self.settings).items() if is_given(value)}
        sound = [type(self).__qualname__, self.sample_rate, given, dict(self._sounds_by), self._line]
        text = json.dumps(sound, sort_keys=True, default=str)
        return hmac.new(self._secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def _places(line: str, words: Iterable[WordTimestamp]) -> tuple[Word, ...]:
    """Find the spoken words in the line; none at all if one is not there as it was spoken."""
    places, end = [], 0
    for word in words:
        first = line.find(word.word, end)
        if first < 0:
            return ()
        end = first + len(word.word)
        places.append(Word(first=first, length=len(word.word), at_ms=round(word.timestamp * 1000)))
    return tuple(places)
