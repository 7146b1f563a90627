"""The caller's rules: what it hears, what it says, what a call comes to, what many say together."""

import asyncio
import io
import math
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from backend.caller import arguments, many
from backend.caller.call import Report, judge
from backend.caller.errors import EXIT_CODES, CallFailedError, Outcome
from backend.caller.face import Terminal
from backend.caller.hearing import LOUD, RATE, Ear, decibels, loudness
from backend.caller.participant import Transcript
from backend.caller.speaking import Recording, UnreadableError
from backend.caller.stages import Spread, Stage, Stages, spread


def hear(ear: Ear, *moments: float, at_loudness: float = LOUD + 1) -> None:
    for moment in moments:
        ear.hear(moment, at_loudness)


def report(outcome: Outcome = Outcome.OK, **reached: float) -> Report:
    made = Report(outcome=outcome)
    made.stages.reached_ms.update({Stage[name.upper()]: ms for name, ms in reached.items()})
    return made


# --- hearing


async def test_a_short_pause_is_part_of_an_utterance_and_a_long_one_ends_it() -> None:
    ear = Ear()
    hear(ear, 1.0, 1.1, 1.25, 2.0)
    assert [(heard.began, heard.ended) for heard in ear.utterances] == [(1.0, 1.25), (2.0, 2.0)]


async def test_noise_is_no_sound() -> None:
    ear = Ear()
    hear(ear, 1.0, at_loudness=LOUD)
    assert not ear.utterances


async def test_an_answer_is_an_utterance_that_begins_after_the_question() -> None:
    ear = Ear()
    hear(ear, 1.0, 1.1)
    waiting = asyncio.ensure_future(ear.utterance(since=1.05))
    hear(ear, 1.2)  # the agent has not finished its last sentence
    await asyncio.sleep(0)
    assert not waiting.done()
    hear(ear, 1.5)
    assert (await asyncio.wait_for(waiting, 1)).began == 1.5


async def test_sound_in_the_midst_of_an_utterance_counts_from_the_moment_asked_for() -> None:
    ear = Ear()
    hear(ear, 1.0, 1.1, 1.2)
    assert await ear.sound() == 1.0
    assert await ear.sound(since=1.15) == 1.15


async def test_silence_is_counted_from_the_last_sound() -> None:
    ear = Ear()
    before = time.monotonic()
    hear(ear, before)
    assert await ear.silence(seconds=0.05) == before
    assert time.monotonic() - before >= 0.05


def test_loudness_is_of_the_whole_frame() -> None:
    assert loudness(np.full(480, -1000, np.int16).tobytes()) == 1000
    assert loudness(b"") == 0
    assert round(decibels(32_768)) == 0
    assert decibels(0) == -90


# --- recordings


def recording(path: Path, *, rate: int, channels: int, seconds: float, width: int = 2) -> Path:
    tone = 8_000 * np.sin(2 * math.pi * 440 * np.arange(int(rate * seconds)) / rate)
    mono = np.concatenate([tone, np.zeros(rate // 2)]).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(np.repeat(mono, channels).tobytes())
    return path


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 1), (16_000, 1), (44_100, 2)])
def test_a_recording_of_any_rate_is_played_as_long_as_it_lasts_without_the_silence_at_its_end(
    tmp_path: Path, rate: int, channels: int
) -> None:
    sound = Recording.read(recording(tmp_path / "a.wav", rate=rate, channels=channels, seconds=1.0)).sound
    assert abs(len(sound) / 2 / RATE - 1.0) < 0.05
    assert abs(loudness(sound) - 8_000 / math.sqrt(2)) < 300


def test_what_cannot_be_played_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(UnreadableError, match="no WAV file"):
        Recording.read(tmp_path / "text.wav")
    with pytest.raises(UnreadableError, match="No such file"):
        Recording.read(tmp_path / "none.wav")
    with pytest.raises(UnreadableError, match="8 bits"):
        Recording.read(recording(tmp_path / "8.wav", rate=8_000, channels=1, seconds=1.0, width=1))
    with pytest.raises(UnreadableError, match="silent"):
        Recording.read(recording(tmp_path / "silent.wav", rate=48_000, channels=1, seconds=0))


# --- outcomes


def test_every_outcome_has_an_exit_code_of_its_own_and_the_help_names_it() -> None:
    assert set(EXIT_CODES) == set(Outcome)
    assert len(set(EXIT_CODES.values())) == len(Outcome)
    for outcome, code in EXIT_CODES.items():
        assert f"\n  {code:<4} {outcome}" in arguments.EPILOG
    assert {error.outcome for error in CallFailedError.__subclasses__()} == set(Outcome) - {
        Outcome.OK,
        Outcome.INTERRUPTED,
    }


@pytest.mark.parametrize(
    ("status", "ended_by", "was_heard", "outcome"),
    [
        ("ended", "agent", True, Outcome.OK),
        ("ended", "limit", True, Outcome.OK),
        ("ended", "client", True, Outcome.OK),
        ("ended", "agent", False, Outcome.UNHEARD),
        ("ended", "platform", True, Outcome.CUT_OFF),
        ("live", None, True, Outcome.CUT_OFF),
    ],
)
def test_a_room_that_closes_before_the_caller_is_done_is_judged_by_who_ended_the_call(
    status: str, ended_by: str | None, was_heard: bool, outcome: Outcome
) -> None:
    assert judge({"status": status, "endedBy": ended_by}, was_heard=was_heard) is outcome


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([Outcome.OK, Outcome.OK], 0),
        ([Outcome.OK, Outcome.UNHEARD, Outcome.REFUSED], 5),
        ([Outcome.REFUSED, Outcome.INTERRUPTED], 130),
        ([], 130),
    ],
)
def test_many_calls_exit_with_the_first_that_was_not_ok(outcomes: list[Outcome], code: int) -> None:
    assert many.exit_code([report(outcome) for outcome in outcomes]) == code


# --- figures


def test_a_stage_counts_from_the_start_and_only_once() -> None:
    seen: list[tuple[Stage, float]] = []
    stages = Stages(lambda stage, ms: seen.append((stage, ms)))
    stages.reach(Stage.CONNECTED, stages.began + 0.1)
    stages.reach(Stage.CONNECTED, stages.began + 0.2)
    stages.reach(Stage.FIRST_SOUND, stages.began + 0.15)
    assert [stage for stage, _ in seen] == [Stage.CONNECTED, Stage.FIRST_SOUND]
    assert stages.between_ms(Stage.CONNECTED, Stage.FIRST_SOUND) == pytest.approx(50)
    assert stages.between_ms(Stage.CONNECTED, Stage.ENDED) is None


def test_the_spread_counts_what_did_not_come_as_lost_and_not_as_a_value() -> None:
    values: list[float | None] = [*map(float, range(1, 101)), None]
    assert spread(values) == Spread(median=50.5, p95=95, worst=100, lost=1)
    assert spread([None, None]) is None


def test_many_calls_say_for_each_stage_how_many_reached_it() -> None:
    reports = [
        report(answered=10, connected=100, first_sound=150, ended=300),
        report(answered=20, connected=120, first_sound=200, ended=300),
        report(Outcome.UNHEARD, answered=30, connected=140, ended=300),
    ]
    summary = many.as_json(reports)
    assert summary["outcomes"] == {"ok": 2, "unheard": 1}
    assert summary["stagesMs"]["answered"] == {"median": 20, "p95": 30, "worst": 30, "lost": 0}
    assert summary["stagesMs"]["connectedToFirstSound"] == {"median": 65, "p95": 80, "worst": 80, "lost": 1}
    assert "agentSeen" not in summary["stagesMs"]
    table = many.as_table(reports)
    assert table[1].split() == ["POST", "to", "answer", "20", "30", "30", "0"]
    assert table[-1] == "3 calls: 2 ok, 1 unheard"


# --- arguments


def test_questions_keep_their_order_and_a_burst_alone_is_one_group(tmp_path: Path) -> None:
    wav = str(recording(tmp_path / "a.wav", rate=48_000, channels=1, seconds=0.1))
    options = arguments.parse(["call", "--say", "one", "--wav", wav, "--say", "two", "--burst", "3"])
    kinds = [question.__qualname__.partition(".")[0] for question in options.questions]
    assert kinds == ["typed", "spoken", "typed"]
    assert (options.count, options.burst) == (3, 3)
    assert arguments.parse(["call"]).questions == []
    assert arguments.parse(["call"]).count == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["call", "--for", "soon"], "'soon' is not a number of seconds"),
        (["call", "--patience", "nan"], "'nan' is not a number of seconds"),
        (["call", "--count", "0"], "'0' is not a number from 1"),
        (["call", "--burst", "201"], "'201' is not a number from 1 to 200"),
        (["call", "--url", "localhost:8000"], "does not begin with http://"),
        (["call", "--wav", "/nowhere.wav"], "/nowhere.wav is no WAV file"),
        (["call", "--microphone", "--count", "2"], "--microphone is for one call"),
        (["call", "--microphone", "--say", "hello"], "--microphone is for one call"),
        (["call", "--api-key", "secret"], "unrecognized arguments"),
        ([], "required: command"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], wrong: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments.parse(wrong)
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert says in shown.err
    assert not shown.out


# --- the terminal


class Screen(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        """Yes."""
        return True


SAID = Transcript("agent", "Hello\x1b[31m there", is_final=True, segment="1")


def test_what_is_said_is_shown_on_a_terminal_without_what_would_steer_it() -> None:
    screen = Screen()
    Terminal(screen).shown(SAID)
    assert "agent: Hello [31m there\n" in screen.getvalue()


@pytest.mark.parametrize(
    ("output", "has_transcript", "is_final"),
    [(io.StringIO(), True, True), (Screen(), False, True), (Screen(), True, False)],
    ids=["a file", "not wanted", "not final"],
)
def test_what_is_said_is_shown_nowhere_else(output: io.StringIO, has_transcript: bool, is_final: bool) -> None:
    said = Transcript("agent", "Hello", is_final=is_final, segment="1")
    Terminal(output, has_transcript=has_transcript).shown(said)
    assert "Hello" not in output.getvalue()
