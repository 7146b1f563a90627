"""The command ``greenroom call`` and the whole product: it hears, asks, is answered, and hangs up."""

import asyncio
import math
import os
import pty
import re
import signal
import sys
import wave
from array import array
from pathlib import Path

import pytest

from tests.acceptance.house import ROOT, House
from tests.fakes.fake_speech import say
from tests.running_command import a_command, run_command
from tests.waiting import wait_until_async

RECORDED_RATE = 16_000


def question(folder: Path, text: str) -> Path:
    return recording(folder, say(text, RECORDED_RATE) + bytes(RECORDED_RATE))


def recording(folder: Path, samples: bytes) -> Path:
    path = folder / "question.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RECORDED_RATE, 0, "NONE", ""))
        file.writeframes(samples)
    return path


async def on_a_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Run ``greenroom`` on a terminal of its own; returns its exit code and all that the terminal was sent."""
    ours, theirs = pty.openpty()
    command = (sys.executable, "-m", "backend.caller", *map(str, arguments))
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    sent = await asyncio.to_thread(_read_all, ours)
    return await process.wait(), sent


def _read_all(terminal: int) -> str:
    sent = b""
    try:
        while part := os.read(terminal, 65_536):
            sent += part
    except OSError:  # how Linux says that nobody writes there any more
        pass
    finally:
        os.close(terminal)
    return sent.decode()


async def test_a_recorded_and_a_typed_question_are_answered_and_shown_on_the_terminal(
    house: House, tmp_path: Path
) -> None:
    wav = question(tmp_path, "how long have we been talking")
    code, sent = await on_a_terminal("call", "--url", house.url, "--wav", wav, "--say", "tell me a joke")
    assert code == 0, sent
    stages = ("was answered", "is in the room", "sees the agent", "sound can come", "agent is heard", "has ended")
    assert [stage for stage in stages if stage not in sent] == []
    assert sent.count("from the end of the question to its answer") == 2
    assert "you: how long have we been talking" in sent.lower()
    assert "agent: " in sent
    assert "agent [#" in sent, "the meter moves"
    assert "client_end (client)" in sent
    assert sent.rstrip().endswith("ok")


async def test_what_is_no_speech_is_unanswered(house: House, tmp_path: Path) -> None:
    wave_shape = (round(9_000 * math.sin(2 * math.pi * 440 * at / RECORDED_RATE)) for at in range(RECORDED_RATE))
    tone = recording(tmp_path, array("h", wave_shape).tobytes())
    ran = await run_command("call", "--url", house.url, "--json", "--wav", tone, "--patience", "5")
    (said,) = ran.documents
    assert (ran.code, said["outcome"], said["endReason"]) == (6, "unanswered", "client_end"), ran


async def test_json_has_the_figures_and_no_word_of_the_conversation(house: House) -> None:
    ran = await run_command("call", "--url", house.url, "--json", "--say", "tell me a joke")
    assert ran.code == 0, ran
    (said,) = ran.documents
    assert "joke" not in ran.output
    assert said["outcome"] == "ok"
    assert list(said["stagesMs"]) == sorted(said["stagesMs"], key=said["stagesMs"].get)
    assert set(said["stagesMs"]) == {"answered", "connected", "agentSeen", "subscribed", "firstSound", "ended"}
    assert len(said["answersMs"]) == 1
    shown = house.get(f"/orchestrator/session/{said['sessionId']}")
    names = ("durationSeconds", "endReason", "endedBy")
    assert [said[name] for name in names] == [shown[name] for name in names]
    assert shown["endReason"] == "client_end"


async def test_an_agent_that_says_goodbye_ends_the_call_in_good_order(house: House) -> None:
    ran = await run_command("call", "--url", house.url, "--say", "goodbye", "--for", "30")
    assert ran.code == 0, ran
    assert "ended: goodbye (agent)" in ran.output


@pytest.mark.alone
async def test_a_burst_beyond_the_pool_is_served_and_summed_up(house: House) -> None:
    await wait_until_async(lambda: asyncio.to_thread(house.is_warm), timeout=30)
    ran = await run_command("call", "--url", house.url, "--json", "--count", "5", "--burst", "4", "--patience", "30")
    *calls, summary = ran.documents
    assert ran.code == 0, ran
    assert [call["outcome"] for call in calls] == ["ok"] * 5
    assert len({call["sessionId"] for call in calls}) == 5
    assert summary["summary"]["calls"] == 5
    assert summary["summary"]["stagesMs"]["firstSound"]["lost"] == 0


async def test_ctrl_c_in_a_call_ends_it_at_once(house: House) -> None:
    async with a_command("call", "--url", house.url, "--for", "60") as command:
        await command.says("the agent is heard")
        command.process.send_signal(signal.SIGINT)
        ran = await command.end()
    assert ran.code == 130, ran
    (session_id,) = re.findall(r"session (\S+),", ran.output)
    shown = house.get(f"/orchestrator/session/{session_id}")
    assert (shown["status"], shown["endReason"]) == ("ended", "client_end")
    assert "ended: client_end (client)" in ran.output
