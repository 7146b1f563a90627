"""The processes behind the voice without keys: what they say and hear, and what happens when they do not."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soxr
from pipecat.frames.frames import (
    ErrorFrame,
    InputAudioRawFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)

from backend.agent.voices import demo, demo_process
from backend.agent.voices.demo import DemoEars, DemoVoice, Timbre, timbre
from backend.agent.voices.demo_mind import normalised
from backend.agent.voices.demo_process import SpeechError, SpeechProcess
from backend.agent.voices.demo_speech import HEARING_RATE
from backend.agent.voices.demo_topics import TOPICS, UNCLEAR
from tests.running_service import RunningService, running_service
from tests.waiting import wait_until, wait_until_async

ROOT = Path(__file__).parents[2]
QUESTIONS = [topic.spoken[0] for topic in TOPICS]
OTHERS = [
    "could you recommend a restaurant with vegetarian food",
    "the meeting was moved to next wednesday afternoon",
    "i forgot where i parked my bicycle",
    "is there a discount for students and pensioners",
    "my sister plays the violin in an orchestra",
    "please connect me with the sales department",
    "what was the name of that film again",
    "we are going to the mountains in december",
    "it has been raining since early this morning",
    "which of these two shirts do you prefer",
    "i have never been to south america",
    "can you explain how a nuclear reactor works",
]
CALLERS = (Timbre("en-us", 50, 160), Timbre("en-us+f2", 60, 150), Timbre("en", 45, 170))
LEAST_RIGHT, MOST_FALSE = 0.9, 0.1


@pytest.fixture
async def speech() -> AsyncIterator[SpeechProcess]:
    process = SpeechProcess("speak")
    yield process
    await process.stop()


@pytest.fixture
async def hearing() -> AsyncIterator[SpeechProcess]:
    process = SpeechProcess("hear", tuple(map(normalised, QUESTIONS)))
    yield process
    await process.stop()


async def spoken(process: SpeechProcess, text: str, sound: Timbre = CALLERS[0]) -> bytes:
    """Say it as a caller would be heard: through a line of 48 kHz, with digital silence around it."""
    answer, said = await process.ask({"text": text, **vars(sound)})
    line = soxr.resample(np.frombuffer(said, np.int16), answer["rate"], 48_000)
    heard = soxr.resample(line, 48_000, HEARING_RATE).astype(np.int16)
    silence = np.zeros(HEARING_RATE // 2, np.int16)
    return bytes(np.concatenate([silence, heard, silence[:3200]]).tobytes())


async def heard(process: SpeechProcess, sound: bytes) -> str | None:
    answer, _ = await process.ask({}, sound)
    question: str | None = answer["question"]
    return question


async def test_questions_are_heard_and_other_speech_is_not_taken_for_one(
    speech: SpeechProcess, hearing: SpeechProcess
) -> None:
    right = [
        await heard(hearing, await spoken(speech, question, caller)) == normalised(question)
        for question in QUESTIONS
        for caller in CALLERS
    ]
    false = [await heard(hearing, await spoken(speech, other, caller)) for other in OTHERS for caller in CALLERS]
    taken = [question for question in false if question]
    assert sum(right) / len(right) >= LEAST_RIGHT
    assert len(taken) / len(false) <= MOST_FALSE, taken


@pytest.mark.parametrize("sound", [b"", b"\0" * 32_000, b"\1\0", b"\xff\x7f" * 16_000])
async def test_no_speech_is_no_question(hearing: SpeechProcess, sound: bytes) -> None:
    assert await heard(hearing, sound) is None


def colour(sound: bytes) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """How the energy of a sound is spread over its pitches."""
    spectrum = np.abs(np.fft.rfft(np.frombuffer(sound, np.int16)))
    audible = spectrum[: len(spectrum) // 2]  # to 4 kHz
    bands: np.ndarray[tuple[int], np.dtype[np.float64]]
    bands = np.log1p(np.array([band.mean() for band in np.array_split(audible, 80)]))
    return bands


async def test_each_voice_sounds_unlike_the_others(speech: SpeechProcess) -> None:
    said = "A sentence that is long enough to know a voice by."
    once = [colour(await spoken(speech, said, timbre(voice))) for voice in demo.TIMBRES]
    again = [colour(await spoken(speech, said, timbre(voice))) for voice in demo.TIMBRES]
    same = max(np.abs(first - second).mean() for first, second in zip(once, again, strict=True))
    other = min(np.abs(first - second).mean() for first, second in itertools.combinations(once, 2))
    assert other > 2 * same


def test_a_voice_of_another_name_is_always_the_same_one() -> None:
    assert timbre("Somebody") in demo.TIMBRES.values()
    assert timbre("Somebody") == timbre("Somebody")


async def test_a_speech_process_sees_no_variable(speech: SpeechProcess) -> None:
    await spoken(speech, "Hello")
    assert not psutil.Process(speech.pid).environ()


async def test_a_process_that_died_is_started_again_by_the_next_request(speech: SpeechProcess) -> None:
    before = await spoken(speech, "Hello")
    died = speech.pid
    assert died is not None
    os.kill(died, signal.SIGKILL)
    assert await spoken(speech, "Hello") == before
    assert speech.pid != died


async def test_a_process_that_always_dies_is_an_error_and_not_a_loop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "dies.py"
    program.write_text(f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); raise SystemExit(1)")
    monkeypatch.setattr(demo_process, "PROGRAM", program)
    with pytest.raises(SpeechError):
        await SpeechProcess("speak").ask({"text": "Hello"})
    assert (tmp_path / "starts").read_text() == "xx"


async def test_a_process_that_hangs_is_ended_in_time_and_replaced(speech: SpeechProcess) -> None:
    before = await spoken(speech, "Hello")
    stuck = speech.pid
    assert stuck is not None
    os.kill(stuck, signal.SIGSTOP)
    with pytest.raises(SpeechError):
        await speech.ask({"text": "Hello", **vars(CALLERS[0])}, timeout_seconds=0.2)
    assert not psutil.pid_exists(stuck)
    assert await spoken(speech, "Hello") == before


@pytest.mark.parametrize("what", ["speak", "hear"])
def test_a_process_does_not_outlive_an_agent_that_is_killed(what: str) -> None:
    program = (
        "import asyncio; from backend.agent.voices.demo_process import SpeechProcess\n"
        "async def main():\n"
        f"    process = SpeechProcess({what!r}, ('goodbye',)); await process.start()\n"
        "    print(process.pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    agent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE, cwd=ROOT)
    assert agent.stdout is not None
    child = psutil.Process(int(agent.stdout.readline()))
    agent.kill()
    agent.wait()
    agent.stdout.close()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="the child is gone")


async def test_the_voice_speaks_when_it_can_be_heard_and_leaves_no_process() -> None:
    voice = DemoVoice(timbre("Ashley"))
    async with running_service(voice) as service:
        asked: list[str] = []
        voice.add_event_handler("on_tts_request", lambda _, __, text: asked.append(text))
        await service.send(TTSSpeakFrame("Hello there. [happy] How are you?"))
        await wait_until_async(lambda: asked, what="speech is asked for")
        assert not service.all(TTSAudioRawFrame)
        voice.heard.set()
        await service.got(TTSStoppedFrame)
        sound = service.all(TTSAudioRawFrame)
        assert sum(len(frame.audio) / 2 / frame.sample_rate for frame in sound) > 1.0
        pid = voice.process.pid
        assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_voice_that_cannot_speak_says_that_it_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "dies.py"
    program.write_text("raise SystemExit(1)")
    monkeypatch.setattr(demo_process, "PROGRAM", program)
    voice = DemoVoice(timbre("Ashley"))
    voice.heard.set()
    async with running_service(voice) as service:
        await service.send(TTSSpeakFrame("Hello there."))
        assert isinstance(await service.failed(), ErrorFrame)
        await wait_until_async(lambda: not voice.is_usable, what="the voice is written off")


async def test_the_ears_hear_a_question_and_say_when_it_was_none(speech: SpeechProcess) -> None:
    ears = DemoEars()
    async with running_service(ears) as service:
        await listen(service, await spoken(speech, "Which session is this?"))
        assert (await service.got(TranscriptionFrame)).text == "Which session is this?"
        await listen(service, await spoken(speech, OTHERS[0]))
        await wait_until_async(lambda: len(service.all(TranscriptionFrame)) == 2, what="a second transcript")
        assert service.all(TranscriptionFrame)[1].text == UNCLEAR


async def test_a_question_with_a_pause_in_it_is_one_question(speech: SpeechProcess) -> None:
    first, second = await spoken(speech, "How many times have I"), await spoken(speech, "been handed over?")
    async with running_service(DemoEars()) as service:
        await listen(service, first)
        await service.got(TranscriptionFrame)
        await listen(service, second)
        await wait_until_async(lambda: len(service.all(TranscriptionFrame)) == 2, what="a second transcript")
        texts = [frame.text for frame in service.all(TranscriptionFrame)]
    assert texts == [UNCLEAR, "How many times have I been handed over?"]


async def listen(service: RunningService, sound: bytes) -> None:
    """Send a segment as the transport and the voice detector do."""

    await service.send(
        InputAudioRawFrame(sound[:6400], HEARING_RATE, 1),
        VADUserStartedSpeakingFrame(),
        InputAudioRawFrame(sound[6400:], HEARING_RATE, 1),
        VADUserStoppedSpeakingFrame(),
    )
