"""Our voice detector against Pipecat's own, on the same sounds and with the real model."""

import itertools

import numpy as np
import pytest
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADState

from backend.agent.room import HEARING_FRAME_MS, HEARING_RATE
from backend.agent.voice_activity import VoiceActivity
from tests.fakes.fake_speech import say

WINDOW_BYTES = HEARING_RATE * HEARING_FRAME_MS // 1000 * 2
SECOND = bytes(HEARING_RATE * 2)


def windows(sound: bytes) -> list[bytes]:
    return [sound[start : start + WINDOW_BYTES] for start in range(0, len(sound) - WINDOW_BYTES + 1, WINDOW_BYTES)]


def conversation(loudness: float, noise: float) -> bytes:
    """Silence, a question, a long pause, a short word, a pause, an answer; over noise of this level."""
    speech = [say(text, HEARING_RATE) for text in ("Can you tell me the way?", "Yes.", "I would like to go home now.")]
    parts = [SECOND * 4, speech[0], SECOND * 5, speech[1], SECOND, speech[2], SECOND * 2]
    samples = np.frombuffer(b"".join(parts), np.int16) * loudness
    hiss = np.random.default_rng(7).standard_normal(len(samples)) * noise
    return bytes((samples + hiss).clip(-32768, 32767).astype(np.int16).tobytes())


async def states(analyzer: SileroVADAnalyzer, sound: bytes) -> list[VADState]:
    analyzer.set_sample_rate(HEARING_RATE)
    try:
        return [await analyzer.analyze_audio(window) for window in windows(sound)]
    finally:
        await analyzer.cleanup()  # type: ignore[no-untyped-call]  # Pipecat's


def changes(told: list[VADState]) -> list[tuple[int, VADState]]:
    """The windows at which speech is taken to begin and to end."""
    settled = [(at, state) for at, state in enumerate(told) if state in (VADState.SPEAKING, VADState.QUIET)]
    return [now for before, now in itertools.pairwise(settled) if before[1] is not now[1]]


@pytest.mark.parametrize("noise", [0.0, 20.0, 300.0])
@pytest.mark.parametrize("loudness", [1.0, 0.15])
async def test_speech_begins_and_ends_where_pipecat_says(loudness: float, noise: float) -> None:
    sound = conversation(loudness, noise)
    ours, theirs = await states(VoiceActivity(), sound), await states(SileroVADAnalyzer(), sound)
    assert len(changes(theirs)) >= 4, "the sounds are heard at all"
    assert [state for _, state in changes(ours)] == [state for _, state in changes(theirs)]
    for (our_window, _), (their_window, _) in zip(changes(ours), changes(theirs), strict=True):
        assert abs(our_window - their_window) <= 1, "in noise it matters when the model last forgot"


async def test_the_model_is_not_asked_about_silence_and_catches_up_before_speech(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    analyzer, asked = VoiceActivity(), 0
    ask = SileroVADAnalyzer.voice_confidence

    def count(self: SileroVADAnalyzer, buffer: bytes) -> float:
        nonlocal asked
        asked += 1
        return float(np.ravel(ask(self, buffer))[0])

    monkeypatch.setattr(SileroVADAnalyzer, "voice_confidence", count)
    await states(analyzer, SECOND * 3)
    assert asked == 0
    analyzer = VoiceActivity()
    told = await states(analyzer, SECOND * 3 + say("Can you tell me the way?", HEARING_RATE))
    assert VADState.SPEAKING in told
    assert 0 < asked < len(told) / 2
