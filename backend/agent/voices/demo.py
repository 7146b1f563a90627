"""The voice that needs no keys: espeak-ng speaks, pocketsphinx hears a closed list of questions, rules answer."""

import re
import time
import zlib
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from typing import Any

from pipecat.frames.frames import ErrorFrame, Frame, TranscriptionFrame, TTSAudioRawFrame
from pipecat.processors.frame_processor import FrameProcessor, FrameProcessorSetup
from pipecat.services.settings import STTSettings, TTSSettings
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.utils.time import time_now_iso8601

from backend.agent.briefing import Briefing
from backend.agent.voices import ProviderError
from backend.agent.voices.demo_mind import DemoMind, normalised
from backend.agent.voices.demo_process import LIBRARIES, SpeechError, SpeechProcess, library_folder
from backend.agent.voices.demo_speech import HEARING_RATE
from backend.agent.voices.demo_topics import GREETING, TOPICS, UNCLEAR
from backend.agent.voices.remembering import Remembering
from backend.agent.voices.shared import Facts, Held, Mind
from backend.common.settings import LauncherSettings


@dataclass(frozen=True)
class Timbre:
    """How one voice sounds: espeak-ng's name for it, its pitch from 0 to 99, its speed."""

    voice: str
    pitch: int
    words_per_minute: int


TIMBRES = {
    "Ashley": Timbre("en-us+f2", 55, 165),
    "Craig": Timbre("en-us+m3", 35, 180),
    "Edward": Timbre("en+m1", 45, 165),
    "Olivia": Timbre("en-gb-x-rp+f3", 50, 165),
    "Priya": Timbre("en-us+f4", 65, 160),
    "Wendy": Timbre("en-us+f5", 45, 180),
}
"""A voice by another name takes one of these, always the same one."""

_CHUNK_SECONDS = 0.2
_JOIN_SECONDS = 1.5
"""A question with a pause in it comes in two pieces; pieces further apart belong to two questions."""
_JOINED_BYTES = HEARING_RATE * 2 * 8
_QUESTIONS = {normalised(question): question for topic in TOPICS for question in topic.spoken}


def timbre(voice_id: str) -> Timbre:
    """Give a voice's sound."""
    names = sorted(TIMBRES)
    return TIMBRES.get(voice_id) or TIMBRES[names[zlib.crc32(voice_id.encode()) % len(names)]]


class DemoVoice(Remembering):
    """Speaks by a process of its own, one sentence at a time."""

    def __init__(self, sound: Timbre) -> None:
        super().__init__(
            sounds_by=asdict(sound),
            push_start_frame=True,
            push_stop_frames=True,
            push_text_frames=False,  # the words come by their times, or an interrupted sentence leaves no trace
            max_consecutive_zero_audio_contexts=1,
            settings=TTSSettings(model=None, voice=sound.voice, language=None),
        )
        self._sound = sound
        self._context, self._said_seconds = "", 0.0
        self.process = SpeechProcess("speak")

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]  # as Pipecat has it
        """Start the process."""
        await super().setup(setup)
        await self.process.start()

    async def cleanup(self) -> None:
        """End the process."""
        await super().cleanup()  # type: ignore[no-untyped-call]  # Pipecat's
        await self.process.stop()

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        """Speak one sentence, in pieces, so that an interruption need not wait for its end."""
        try:
            answer, sound = await self.process.ask(
                {
                    "text": re.sub(r"\[\w+\]", "", text),  # emotion tags are not words
                    "voice": self._sound.voice,
                    "pitch": self._sound.pitch,
                    "words_per_minute": self._sound.words_per_minute,
                }
            )
        except SpeechError as error:
            yield ErrorFrame(error=f"demo voice: {error}")
            return
        await self.start_tts_usage_metrics(text)
        rate: int = answer["rate"]
        await self._time_words(text, len(sound) / 2 / rate, context_id)
        step = int(rate * _CHUNK_SECONDS) * 2
        for start in range(0, len(sound), step):
            yield TTSAudioRawFrame(sound[start : start + step], rate, 1, context_id=context_id)

    async def _time_words(self, text: str, seconds: float, context_id: str) -> None:
        """Say when each word comes; a turn's sentences follow each other, and a long word takes longer."""
        if context_id != self._context:
            self._context, self._said_seconds = context_id, 0.0
        words = text.split()
        letters = max(1, sum(map(len, words)))
        times = [self._said_seconds + seconds * sum(map(len, words[:place])) / letters for place in range(len(words))]
        self._said_seconds += seconds
        await self.add_word_timestamps(list(zip(words, times, strict=True)), context_id)


class DemoEars(SegmentedSTTService):
    """Hears the questions of demo_topics by a process of its own, and says so when it was something else."""

    def __init__(self) -> None:
        super().__init__(
            sample_rate=HEARING_RATE,
            trailing_silence_secs=0.0,  # the process trims the silence as it needs it
            ttfs_p99_latency=1.0,
            settings=STTSettings(model=None, language=None),
        )
        self.process = SpeechProcess("hear", tuple(_QUESTIONS))
        self._unclear, self._unclear_at = b"", 0.0

    @property
    def wants_wav_segments(self) -> bool:
        """Raw sound."""
        return False

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]  # as Pipecat has it
        """Start the process; what is said before it has loaded waits for it."""
        await super().setup(setup)
        await self.process.start()

    async def cleanup(self) -> None:
        """End the process."""
        await super().cleanup()  # type: ignore[no-untyped-call]  # Pipecat's
        await self.process.stop()

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        """Say which question a segment is, by itself or with the unclear one just before it."""
        try:
            question = await self._hear(audio) or await self._hear_joined(audio)
        except SpeechError as error:
            yield ErrorFrame(error=f"demo ears: {error}")
            return
        self._unclear, self._unclear_at = b"" if question else audio[-_JOINED_BYTES:], time.monotonic()
        yield TranscriptionFrame(question or UNCLEAR, self._user_id, time_now_iso8601())

    async def _hear_joined(self, audio: bytes) -> str | None:
        pause = time.monotonic() - self._unclear_at - len(audio) / 2 / HEARING_RATE
        return await self._hear(self._unclear + audio) if self._unclear and pause < _JOIN_SECONDS else None

    async def _hear(self, sound: bytes) -> str | None:
        answer: dict[str, Any]
        answer, _ = await self.process.ask({}, sound)
        return _QUESTIONS.get(answer["question"] or "")


def speech_to_text(_: LauncherSettings, __: Briefing) -> FrameProcessor:
    """Make the ears of one call."""
    return DemoEars()


def language_model(_: LauncherSettings, __: Briefing, facts: Facts) -> Mind:
    """Make the mind of one call; it follows no prompt."""
    return Mind(think=DemoMind(facts), greeting=GREETING)


def text_to_speech(_: LauncherSettings, briefing: Briefing) -> Held:
    """Make the voice of one call."""
    return DemoVoice(timbre(briefing.voice_id))


def preload(_: LauncherSettings) -> None:
    """Look whether both libraries are installed.

    Raises:
        ProviderError: one is not.
    """
    missing = [library for what, library in LIBRARIES.items() if library_folder(what) is None]
    if missing:
        raise ProviderError(
            f"VOICE=demo needs {' and '.join(missing)}: install the extra demo, or set the vendors' keys"
        )
