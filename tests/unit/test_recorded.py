"""What a browser recorded becomes samples; what is not what it says is refused, and nothing else happens."""

import random
from pathlib import Path

import numpy as np
import pytest

from backend.agent.recorded import samples

QUESTION = (Path(__file__).parents[1] / "fakes" / "sounds" / "question.webm").read_bytes()
"""Three seconds of MediaRecorder's in Chromium 156: half a second of silence, a question, silence."""
WEBM, RATE = "audio/webm;codecs=opus", 16_000


def loudness(sound: bytes) -> list[float]:
    """Of each tenth of a second."""
    parts = np.frombuffer(sound[: len(sound) // 3200 * 3200], np.int16).astype(float).reshape(-1, 1600)
    return [float(value) for value in np.sqrt((parts * parts).mean(axis=1))]


def test_a_browsers_recording_is_heard_as_it_was_said() -> None:
    sound = samples(QUESTION, WEBM, 48_000, wanted_rate=RATE)
    assert len(sound) / 2 / RATE == pytest.approx(3.0, abs=0.1)
    tenths = loudness(sound)
    assert max(tenths[:4]) < 50
    assert min(max(tenths[at : at + 3]) for at in range(6, 20)) > 1_000, "speech has no pause of 0.3 s in it"
    assert max(tenths[24:]) < 50


@pytest.mark.parametrize("length", [20_000, 20_879, 20_880, 20_881])
def test_a_recording_that_was_cut_is_heard_as_far_as_it_goes(length: int) -> None:
    sound = samples(QUESTION[:length], WEBM, 48_000, wanted_rate=RATE)
    assert 1.0 < len(sound) / 2 / RATE < 2.5
    assert max(loudness(sound)) > 1_000


def test_raw_samples_are_brought_to_the_pipelines_rate() -> None:
    tone = (8_000 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype(np.int16).tobytes()
    sound = samples(tone, "application/octet-stream", 48_000, wanted_rate=RATE)
    assert len(sound) / 2 == pytest.approx(RATE, abs=100)
    assert np.mean(loudness(sound)) == pytest.approx(8_000 / 2**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("recorded", "mime_type", "rate"),
    [
        (b"", WEBM, 48_000),
        (b"no webm at all", WEBM, 48_000),
        (b"\0" * 100, WEBM, 48_000),
        (QUESTION[:40], WEBM, 48_000),
        (QUESTION, "video/mp4", 48_000),
        (QUESTION, "audio/opus", 48_000),
        (b"\0\0" * 100, "audio/pcm", 0),
        (b"\0\0" * 100, "", 1_000_000),
    ],
)
def test_what_cannot_be_read_is_refused(recorded: bytes, mime_type: str, rate: int) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        samples(recorded, mime_type, rate, wanted_rate=RATE)


def test_no_bytes_of_a_stranger_do_more_than_be_refused() -> None:
    chance = random.Random(4711)  # noqa: S311  # no secret
    for _ in range(300):
        broken = bytearray(QUESTION[: chance.randrange(1, 6_000)])
        for _ in range(chance.randrange(0, 8)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            sound = samples(bytes(broken), WEBM, 48_000, wanted_rate=RATE)
        except ValueError:
            continue
        assert len(sound) < 60 * RATE * 2
