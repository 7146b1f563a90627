"""A spoken call in a real browser: greeting heard, question asked aloud, answer heard, charged to the second."""

import time
import wave
from pathlib import Path

from tests.acceptance.browser import Person
from tests.acceptance.conftest import OpenTab
from tests.acceptance.house import House
from tests.acceptance.page import OUTPUT_LOUDNESS, start, wait_for_agent_lines
from tests.fakes.fake_caller import RATE
from tests.fakes.fake_speech import say

BEFORE_SECONDS, AFTER_SECONDS = 9, 20
"""The browser plays its file from the moment that the microphone opens: the greeting comes first."""


def microphone(path: Path, question: str) -> Path:
    """Write what the person says: nothing, then the question, then nothing."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(bytes(2 * RATE * BEFORE_SECONDS) + say(question, RATE) + bytes(2 * RATE * AFTER_SECONDS))
    return path


async def test_a_spoken_question_is_answered_and_the_call_is_charged_to_the_second(
    house: House, browser: OpenTab, tmp_path: Path
) -> None:
    tab = await browser(Person(microphone=microphone(tmp_path / "question.wav", "how long have we been talking")))
    await tab.open(f"{house.url}/")
    await start(tab)
    await tab.wait_until(f"{OUTPUT_LOUDNESS}.then((loudness) => loudness > 0.01)", seconds=30)
    heard_at = time.monotonic()
    await wait_for_agent_lines(tab, 1)

    answer = await wait_for_agent_lines(tab, 2)
    await tab.wait_until(f"{OUTPUT_LOUDNESS}.then((loudness) => loudness > 0.01)")
    await tab.click("#end")
    talked_seconds = time.monotonic() - heard_at
    await tab.wait_until("document.querySelector('#main').dataset.view === 'closing'")

    assert "second" in answer
    ended = house.get("/orchestrator/sessions?limit=1")["sessions"][0]
    assert abs(ended["durationSeconds"] - talked_seconds) <= 1
    assert (ended["endReason"], ended["durationMinutes"]) == ("client_end", 1)
