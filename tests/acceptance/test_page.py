"""The page in a real browser: what a person sees, hears and does from Start to the closing words."""

import json
import re
import wave
from pathlib import Path

import aiohttp
import pytest

from tests.acceptance.browser import Person, Tab
from tests.acceptance.conftest import OpenTab
from tests.acceptance.house import House
from tests.acceptance.page import GREETING, OUTPUT_LOUDNESS, say, start, wait_for_agent_lines

pytestmark = pytest.mark.acceptance

PHONE_WIDTH = 360


@pytest.fixture
def silent(tmp_path: Path) -> Person:
    """Sit in front of the browser and say nothing: the fake device's own beeps could interrupt the agent."""
    path = tmp_path / "silence.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48000)
        file.writeframes(bytes(2 * 48000))
    return Person(microphone=path)


@pytest.fixture
async def lobby(house: House, browser: OpenTab, silent: Person) -> Tab:
    """Open the page as someone who says nothing."""
    tab = await browser(silent)
    await tab.open(f"{house.url}/")
    return tab


@pytest.fixture
async def call(lobby: Tab) -> Tab:
    """Be in a call whose greeting was spoken to its end."""
    await start(lobby)
    await wait_for_agent_lines(lobby, 1)
    return lobby


async def _wait_for_level(tab: Tab, who: str, condition: str) -> None:
    await tab.wait_until(f"document.querySelector('#{who}-meter').style.getPropertyValue('--level') {condition}")


async def test_start_lets_the_person_hear_the_greeting_and_read_it(lobby: Tab) -> None:
    await start(lobby)

    await lobby.wait_until("document.querySelector('#agent-state').innerText === 'Speaking'", seconds=30)
    await lobby.wait_until(f"{OUTPUT_LOUDNESS}.then((loudness) => loudness > 0.01)")
    await _wait_for_level(lobby, "agent", "> 0.3")

    assert await wait_for_agent_lines(lobby, 1) == GREETING
    assert await lobby.text("#connection") == "Connected"
    await lobby.wait_until("document.querySelector('#timer').innerText > '00:01'")


async def test_a_typed_message_is_shown_and_answered(call: Tab) -> None:
    await say(call, "how long have we talked")

    assert re.search("second|minute", await wait_for_agent_lines(call, 2))
    assert await call.text("#transcript .you .words") == "how long have we talked"
    assert await call.evaluate("document.querySelector('#message').value") == ""


async def test_mute_silences_the_microphone_until_it_is_pressed_again(house: House, browser: OpenTab) -> None:
    tab = await browser(Person())
    await tab.open(f"{house.url}/")
    await start(tab)
    await _wait_for_level(tab, "you", "> 0.2")

    await tab.click("#mute")
    await tab.wait_until("document.querySelector('#you-state').innerText === 'Muted'")
    await _wait_for_level(tab, "you", "< 0.01")
    assert await tab.text("#mute") == "Unmute"

    await tab.click("#mute")
    await _wait_for_level(tab, "you", "> 0.2")
    assert await tab.text("#mute") == "Mute"


async def test_end_tells_who_ended_the_call_and_how_long_it_was(call: Tab) -> None:
    saved = json.loads(str(await call.evaluate("sessionStorage.getItem('greenroom.call')")))

    await call.click("#end")
    await call.wait_until("document.querySelector('#main').dataset.view === 'closing'")

    assert await call.text("#closing-reason") == "You ended the call."
    shown = re.fullmatch(r"You talked for (\d+) s, counted as 1 minute\.", await call.text("#closing-duration"))
    session = await call.evaluate(
        f"fetch('/orchestrator/session/{saved['sessionId']}').then((answer) => answer.json())"
    )
    assert isinstance(session, dict)
    assert (session["status"], session["endReason"], session["endedBy"]) == ("ended", "client_end", "client")
    assert shown
    assert int(shown[1]) == pytest.approx(session["durationSeconds"], abs=0.51)
    await call.wait_until("document.querySelector('#loudspeaker').children.length === 0")


async def test_a_refused_microphone_is_explained_and_the_call_goes_on_in_writing(
    house: House, browser: OpenTab
) -> None:
    tab = await browser(Person(allows_microphone=False))
    await tab.open(f"{house.url}/")
    await start(tab)

    await tab.wait_until("document.querySelector('#microphone-problem').innerText.includes('was refused')")
    assert await tab.text("#mute") == "Use mic"
    assert await wait_for_agent_lines(tab, 1) == GREETING
    await say(tab, "how long have we talked")
    assert re.search("second|minute", await wait_for_agent_lines(tab, 2))


async def test_blocked_sound_is_offered_as_a_button(house: House, browser: OpenTab) -> None:
    tab = await browser(Person(allows_microphone=False, has_clicked=False))
    await tab.open(f"{house.url}/")
    # By script: a real press is the gesture after which nothing is blocked.
    await tab.evaluate("document.querySelector('#name').value = 'Mira'; document.querySelector('#start').click()")

    await tab.wait_until("document.querySelector('#playback-problem').checkVisibility()", seconds=30)
    await tab.click("#hear")

    await tab.wait_until("!document.querySelector('#playback-problem').checkVisibility()")
    await tab.wait_until("document.querySelector('#loudspeaker audio')?.paused === false")


async def test_after_a_reload_the_person_returns_to_the_same_call(house: House, call: Tab) -> None:
    before = await call.evaluate("sessionStorage.getItem('greenroom.call')")

    await call.open(f"{house.url}/")
    await call.wait_until("document.querySelector('#return-offer').checkVisibility()")
    await call.click("#return")

    await call.wait_until("document.querySelector('#connection').innerText === 'Connected'")
    await say(call, "how long have we talked")
    assert re.search("second|minute", await wait_for_agent_lines(call, 1))
    assert await call.evaluate("sessionStorage.getItem('greenroom.call')") == before


async def test_the_keyboard_alone_places_a_call(lobby: Tab) -> None:
    while await lobby.evaluate("document.activeElement.id") != "name":
        await lobby.press("Tab")
    await lobby.type("Mira")
    await lobby.press("Enter")

    await lobby.wait_until("document.querySelector('#main').dataset.view === 'call'")
    assert await lobby.evaluate("document.activeElement.id") == "call-title"


async def test_everything_that_can_be_used_has_a_name(lobby: Tab) -> None:
    await lobby.click("summary")
    in_lobby = await _usable(lobby)
    await lobby.click("summary")
    await start(lobby)
    in_call = await _usable(lobby)

    assert {"Your name", "Voice", "Opening line", "System prompt", "Start"} <= set(in_lobby)
    assert {"Mute", "End", "Message to the agent", "Send"} <= set(in_call)
    assert "" not in in_lobby + in_call


async def _usable(tab: Tab) -> list[str]:
    """Give the names under which a screen reader offers the fields, buttons and links that are in sight."""
    tree = (await tab.command("Accessibility.getFullAXTree"))["nodes"]
    assert isinstance(tree, list)
    roles = {"button", "textbox", "combobox", "link", "DisclosureTriangle"}
    seen = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    return [node.get("name", {}).get("value", "") for node in seen]


async def test_nothing_is_cut_off_on_a_phone(lobby: Tab) -> None:
    await lobby.emulate(width=PHONE_WIDTH, height=740)
    widest = "document.documentElement.scrollWidth"
    assert await lobby.evaluate(widest) == PHONE_WIDTH

    await start(lobby)

    assert await lobby.evaluate(widest) == PHONE_WIDTH
    bottom = await lobby.evaluate("document.querySelector('#message-form').getBoundingClientRect().bottom")
    assert isinstance(bottom, int | float)
    assert bottom <= 740


async def test_the_page_runs_only_what_is_its_own(house: House) -> None:
    async with aiohttp.ClientSession() as client, client.get(f"{house.url}/") as response:
        policy = response.headers["Content-Security-Policy"]
        text = await response.text()

    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"(?:src|href)=\"(?:https?:)?//", text) == []
    assert re.findall(r"<script>|<style|\son\w+=|\sstyle=", text) == []
