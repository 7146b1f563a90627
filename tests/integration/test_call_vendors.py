"""A call with three vendors by their wire protocols: how it goes, and every way in which one of them can fail."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from backend.agent import pipeline, prompt, rules
from backend.common.contract import AGENT_IDENTITY, EndReason, Order
from tests.fakes.fake_vendors import FakeVendors, Kind, ToolCall, Vendor
from tests.livekit_server import LiveKitServer
from tests.running_call import OPENING, Running, a_call

# An agent's process ends with its call, and nobody closes the model's connections before.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

QUESTION = "Please tell me what you know about the weather of tomorrow."
LONG = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, and fifteen."


@pytest.fixture
async def vendors() -> AsyncIterator[FakeVendors]:
    async with FakeVendors() as fakes:
        yield fakes


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less than for people."""
    monkeypatch.setattr(rules, "ANSWER_SECONDS", 1.5)
    monkeypatch.setattr(pipeline, "TURN_STOP_SECONDS", 1.0)
    monkeypatch.setattr(prompt, "APOLOGY", "Excuse me, please.")


def wishes(vendors: FakeVendors) -> dict[str, Any]:
    """The settings that lead to them."""
    urls = {name: getattr(vendors, name) for name in ("assembly_url", "groq_url", "inworld_url")}
    keys = dict.fromkeys(("assembly_api_key", "groq_api_key", "inworld_api_key"), "a-key")
    return {"voice": "vendors", **urls, **keys}


async def excused(call: Running) -> None:
    """Type something, and wait for the apology."""
    await call.caller.type("What now?")
    await call.link.recorded(prompt.APOLOGY)


async def given_up(call: Running) -> None:
    """Type something again, and wait for the end, with a goodbye."""
    await call.caller.type("And now?")
    assert await call.reason(within=8) is EndReason.VENDOR_FAILED
    assert call.link.ended == [EndReason.VENDOR_FAILED]
    await call.link.recorded(prompt.goodbye(EndReason.VENDOR_FAILED))


async def test_a_question_is_heard_thought_about_and_answered_and_what_it_cost_is_counted(
    livekit: LiveKitServer, vendors: FakeVendors
) -> None:
    vendors.transcripts, vendors.replies = ["What about tomorrow?"], ["It will be sunny."]
    async with a_call(livekit, **wishes(vendors)) as call:
        caller = await call.caller_is_greeted()
        asked_at = await caller.say(QUESTION)
        await caller.sound(since=asked_at)
        await call.link.recorded("sunny")
        assert [turn.role for turn in call.link.turns] == ["assistant", "user", "assistant"]
        roles = [message["role"] for message in vendors.seen("llm")[0].body["messages"]]
        assert roles == ["system", "assistant", "user"]
        usage = call.link.progress().usage
        assert usage["characters"] >= len(OPENING)
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (42, 9)


async def test_an_opening_line_from_disk_is_heard_shown_recorded_and_charged_as_one_from_the_vendor(
    livekit: LiveKitServer, vendors: FakeVendors, tmp_path: Path
) -> None:
    chosen = {
        **wishes(vendors),
        "opening_line_cache_for": ("inworld",),
        "opening_line_cache_mb": 1,
        "run_dir": tmp_path,
    }
    seconds, asked = [], []
    for _ in range(2):
        async with a_call(livekit, **chosen, opening_line=QUESTION) as call:
            caller = await call.caller_joins()
            first, last = await caller.utterance()
            seconds.append(last - first)
            asked.append(sum("send_text" in seen.body for seen in vendors.seen("tts")))
            assert (await caller.shown("weather", speaker=AGENT_IDENTITY)).text == QUESTION
            assert (await call.link.recorded("weather")).text == QUESTION
            assert call.link.begun == 1
            assert call.link.progress().usage["characters"] == (len(QUESTION) + 1 if asked == [1] else 0)
    assert asked == [1, 1]
    assert seconds[1] == pytest.approx(seconds[0], abs=0.15), "from its first syllable to its last"


async def test_an_opening_line_from_disk_is_recorded_as_far_as_it_was_heard(
    livekit: LiveKitServer, vendors: FakeVendors, tmp_path: Path
) -> None:
    chosen = {
        **wishes(vendors),
        "opening_line_cache_for": ("inworld",),
        "opening_line_cache_mb": 1,
        "run_dir": tmp_path,
    }
    async with a_call(livekit, **chosen, opening_line=LONG) as call:
        await call.caller_joins()
        await call.caller.sound()
    async with a_call(livekit, **chosen, opening_line=LONG) as call:
        caller = await call.caller_joins()
        await caller.sound()
        await caller.say(QUESTION)
        turn = await call.link.recorded("one, two")
        assert turn.interrupted
        assert "fifteen" not in turn.text


async def test_an_interrupted_turn_is_recorded_as_far_as_it_was_heard(
    livekit: LiveKitServer, vendors: FakeVendors
) -> None:
    async with a_call(livekit, **wishes(vendors)) as call:
        caller = await call.caller_is_greeted()
        call.link.tell(Order.SAY, LONG)
        began_at = await caller.sound(since=time.monotonic())
        await caller.sound(since=began_at + 1.5)  # two words at least were heard
        await caller.say(QUESTION)
        turn = await call.link.recorded("one, two")
        assert turn.interrupted
        assert "fifteen" not in turn.text
        assert time.monotonic() - began_at < 10


async def test_the_model_can_bid_farewell(livekit: LiveKitServer, vendors: FakeVendors) -> None:
    vendors.replies = [ToolCall("end_call", {"farewell": "Have a good day."}), "unused"]
    async with a_call(livekit, **wishes(vendors)) as call:
        caller = await call.caller_is_greeted()
        await caller.type("I have to go.")
        assert await call.reason(within=8) is EndReason.GOODBYE
        await call.link.recorded("Have a good day")


async def test_a_new_prompt_counts_from_the_next_answer_on(livekit: LiveKitServer, vendors: FakeVendors) -> None:
    async with a_call(livekit, **wishes(vendors)) as call:
        caller = await call.caller_is_greeted()
        call.link.tell(Order.PROMPT, "Speak like a pirate.")
        await caller.type("Who are you?")
        await call.link.recorded("test agent")
        assert "pirate" in vendors.seen("llm")[-1].body["messages"][0]["content"]


@pytest.mark.parametrize("vendor", ["stt", "tts"])
@pytest.mark.parametrize(("kind", "within"), [("401", 8.0), ("500", 8.0), ("hang", 12.0)])
async def test_a_vendor_that_cannot_be_reached_at_the_start_ends_the_call(
    livekit: LiveKitServer, vendors: FakeVendors, vendor: Vendor, kind: Kind, within: float
) -> None:
    vendors.fault(vendor, kind)
    async with a_call(livekit, **wishes(vendors)) as call:
        await call.caller_joins()
        assert await call.reason(within=within) is EndReason.VENDOR_FAILED


@pytest.mark.parametrize("vendor", ["stt", "tts"])
async def test_a_vendor_that_does_not_answer_holds_no_known_opening_line_back(
    livekit: LiveKitServer, vendors: FakeVendors, tmp_path: Path, vendor: Vendor
) -> None:
    chosen = {
        **wishes(vendors),
        "opening_line_cache_for": ("inworld",),
        "opening_line_cache_mb": 1,
        "run_dir": tmp_path,
    }
    async with a_call(livekit, **chosen) as call:
        await call.caller_is_greeted()
    vendors.fault(vendor, "hang")
    async with a_call(livekit, **chosen) as call:
        caller = await call.caller_joins()
        await caller.sound()
        assert not call.bot.done()
        assert await call.reason(within=12) is EndReason.VENDOR_FAILED


async def test_a_voice_without_sound_ends_the_call(livekit: LiveKitServer, vendors: FakeVendors) -> None:
    vendors.fault("tts", "mute")
    async with a_call(livekit, **wishes(vendors)) as call:
        await call.caller_joins()
        assert await call.reason(within=6) is EndReason.VENDOR_FAILED


async def test_a_voice_that_falls_silent_in_the_call_ends_it(livekit: LiveKitServer, vendors: FakeVendors) -> None:
    async with a_call(livekit, **wishes(vendors)) as call:
        caller = await call.caller_is_greeted()
        vendors.fault("tts", "mute")
        await caller.type("Are you there?")
        assert await call.reason(within=8) is EndReason.VENDOR_FAILED


@pytest.mark.parametrize("kind", ["500", "hang", "mute"])
async def test_a_model_that_does_not_answer_is_excused_once_and_then_ends_the_call(
    livekit: LiveKitServer, vendors: FakeVendors, kind: Kind
) -> None:
    vendors.fault("llm", kind)
    async with a_call(livekit, **wishes(vendors)) as call:
        await call.caller_is_greeted()
        await excused(call)
        await given_up(call)


async def test_a_model_that_answers_after_an_apology_has_made_up_for_it(
    livekit: LiveKitServer, vendors: FakeVendors
) -> None:
    vendors.fault("llm", "500")
    async with a_call(livekit, **wishes(vendors)) as call:
        await call.caller_is_greeted()
        await excused(call)
        vendors.fault("llm", "")
        await call.caller.type("And now?")
        await call.link.recorded("test agent")
        assert not call.bot.done()


async def test_a_model_that_refuses_our_key_ends_the_call_with_a_goodbye(
    livekit: LiveKitServer, vendors: FakeVendors
) -> None:
    vendors.fault("llm", "401")
    async with a_call(livekit, **wishes(vendors)) as call:
        await call.caller_is_greeted()
        await given_up(call)


@pytest.mark.timeout(40)
async def test_ears_that_understand_nothing_are_excused_once_and_then_end_the_call(
    livekit: LiveKitServer, vendors: FakeVendors
) -> None:
    vendors.fault("stt", "mute")
    async with a_call(livekit, **wishes(vendors)) as call:
        caller = await call.caller_is_greeted()
        for _ in range(rules.UNHEARD_TURNS):
            assert len(call.link.turns) == 1, "it apologised too early"
            said_at = await caller.say("Can you understand me?")
            await caller.silence(since=said_at, seconds=3.0)
        await call.link.recorded(prompt.APOLOGY)
        await caller.say("Can you understand me?")
        assert await call.reason(within=10) is EndReason.VENDOR_FAILED


@pytest.mark.parametrize("vendor", ["stt", "tts"])
async def test_a_connection_that_breaks_in_the_call_is_made_again(
    livekit: LiveKitServer, vendors: FakeVendors, vendor: Literal["stt", "tts"]
) -> None:
    vendors.replies = ["Here I am again."]
    async with a_call(livekit, **wishes(vendors)) as call:
        caller = await call.caller_is_greeted()
        vendors.drop(vendor)
        await caller.silence(since=time.monotonic(), seconds=1.5)
        asked_at = await caller.say(QUESTION)
        await caller.sound(since=asked_at)
        await call.link.recorded("Here I am")
