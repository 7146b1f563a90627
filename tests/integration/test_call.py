"""A call on a real LiveKit server with the voice that needs no keys: from the greeting to every way it can end."""

import asyncio
import time

import pytest
from livekit import rtc

from backend.agent import call as call_module
from backend.agent import pipeline, prompt, rules
from backend.agent.briefing import Turn
from backend.agent.ending import GOODBYE_SECONDS
from backend.agent.room import JoinedClient, Room
from backend.agent.rules import Clock
from backend.agent.stages import Stage
from backend.common.contract import AGENT_IDENTITY, EndReason, Order
from tests.fakes.fake_caller import LOUD, FakeCaller
from tests.fakes.fake_link import FakeLink
from tests.livekit_server import CALLER, LiveKitServer
from tests.running_call import OPENING, a_call
from tests.waiting import wait_until_async

LONG = "One, two, three, four, five, six, seven, eight, nine, ten, and so on, " * 3


async def test_the_opening_line_is_heard_from_its_first_syllable_and_the_call_begins_then(
    livekit: LiveKitServer,
) -> None:
    opening = "Hello, and welcome to this little call of ours."
    async with a_call(livekit, opening_line=opening) as call:
        caller = await call.caller_joins()
        first, last = await caller.utterance()
        assert call.link.begun == 1
        call.link.tell(Order.SAY, opening)  # to a caller who listens already: nothing of it can be lost
        again_first, again_last = await caller.utterance(since=time.monotonic())
        assert last - first > again_last - again_first - 0.1
        assert [turn.text for turn in call.link.turns] == [opening, opening]


async def test_each_stage_of_the_start_is_timed_from_the_claim(livekit: LiveKitServer) -> None:
    link = FakeLink()
    link.stages.begin()
    async with a_call(livekit, link) as call:
        await call.caller_is_greeted()
    reached = link.stages.untold()
    assert reached.keys() == set(Stage)
    assert 0 < reached[Stage.BUILT] <= reached[Stage.CONNECTED] <= reached[Stage.FIRST_SOUND]


async def test_a_spoken_question_is_answered_once_and_shown(
    livekit: LiveKitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "ANSWER_SECONDS", 1.0)  # an answer that is missed would be excused that soon
    async with a_call(livekit) as call:
        caller = await call.caller_is_greeted()
        await caller.say("Which agent are you?")
        asked_at = time.monotonic()
        await caller.sound(since=asked_at + 0.1)
        question = await caller.shown("which agent are you", speaker=CALLER)
        answer = (await wait_until_async(lambda: call.link.turns[2:], timeout=10, what="the answer is recorded"))[0]
        assert answer.role == "assistant"
        assert (await caller.shown(answer.text, speaker=AGENT_IDENTITY)).segment != question.segment
        assert {"listening", "thinking", "speaking"} <= set(caller.states)
        await caller.silence(since=time.monotonic(), seconds=1.5)
        assert len(call.link.turns) == 3


async def test_the_caller_can_interrupt_a_long_answer(livekit: LiveKitServer) -> None:
    async with a_call(livekit) as call:
        caller = await call.caller_is_greeted()
        call.link.tell(Order.SAY, LONG)
        await caller.sound(since=time.monotonic())
        began_at = time.monotonic()
        await caller.say("Wait a moment please, I have to say something.")
        cut_at = next(step.at for step in caller.heard if step.at > began_at + 0.2 and step.loudness < LOUD)
        assert cut_at - began_at < 2.0


async def test_a_typed_question_is_answered_aloud_and_recorded(livekit: LiveKitServer) -> None:
    async with a_call(livekit) as call:
        caller = await call.caller_is_greeted()
        typed_at = time.monotonic()
        await caller.type("which agent are you")
        assert await caller.sound(since=typed_at + 0.1) - typed_at < 3.0
        assert (await call.link.recorded("which agent are you")).role == "user"


async def test_what_is_typed_by_another_or_is_too_long_is_not_heard(livekit: LiveKitServer) -> None:
    async with a_call(livekit) as call, FakeCaller() as other:
        caller = await call.caller_is_greeted()
        await other.join(livekit.url, livekit.token(call.room, "someone_else"), with_microphone=False)
        await other.type("which agent are you")
        await caller.type("x" * 4_001)
        await caller.type("how long have we talked")
        await call.link.recorded("how long have we talked")
        assert [turn.text for turn in call.link.turns if turn.role == "user"] == ["how long have we talked"]


async def test_a_caller_who_leaves_and_comes_back_in_time_talks_on(livekit: LiveKitServer) -> None:
    async with a_call(livekit, caller_grace_seconds=2.0) as call:
        await call.caller_is_greeted()
        await call.caller.leave()
        await wait_until_async(lambda: livekit.identities(call.room), what="the agent is alone")
        call.caller = FakeCaller()
        caller = await call.caller_joins()
        await asyncio.wait({call.bot}, timeout=2.5)  # the time in which it would have given up
        assert not call.bot.done()
        typed_at = time.monotonic()
        await caller.type("which agent are you")
        await caller.sound(since=typed_at)


async def test_a_caller_who_leaves_for_good_ends_the_call(livekit: LiveKitServer) -> None:
    async with a_call(livekit, caller_grace_seconds=0.5) as call:
        await call.caller_is_greeted()
        await call.caller.leave()
        assert await call.reason(within=2.5) is EndReason.CALLER_LEFT
        assert call.link.ended == [EndReason.CALLER_LEFT]
        assert await livekit.identities(call.room) == set()


@pytest.mark.parametrize("bot", ["voice", "tone"])
async def test_an_agent_that_was_waited_for_publishes_when_its_caller_is_there(
    livekit: LiveKitServer, bot: str
) -> None:
    async with a_call(livekit, was_awaited=True, agent_bot=bot) as call:

        async def is_in() -> bool:
            return await livekit.people(call.room) == {AGENT_IDENTITY: 0}

        await wait_until_async(is_in, what="the agent is in the room")
        await asyncio.sleep(0.5)  # as long as it would take it to publish
        assert await is_in()
        caller = await call.caller_joins(with_microphone=False)
        await caller.sound()


async def test_an_agent_that_was_waited_for_goes_when_nobody_comes(livekit: LiveKitServer) -> None:
    async with a_call(livekit, was_awaited=True, nobody_came_seconds=1.0) as call:
        assert await call.reason(within=3) is EndReason.NOBODY_CAME


async def test_a_call_to_which_nobody_comes_ends_and_never_began(livekit: LiveKitServer) -> None:
    async with a_call(livekit, nobody_came_seconds=1.0) as call:
        assert await call.reason(within=3) is EndReason.NOBODY_CAME
        assert call.link.begun == 0


async def test_silence_is_asked_about_and_then_ends_the_call(livekit: LiveKitServer) -> None:
    async with a_call(livekit, silence_ask_seconds=1.0, silence_end_seconds=3.0) as call:
        await call.caller_is_greeted()
        await call.link.recorded(prompt.STILL_THERE)
        assert not call.bot.done()
        assert await call.reason(within=8) is EndReason.SILENCE
        await call.link.recorded(prompt.goodbye(EndReason.SILENCE))


async def test_the_time_limit_is_announced_and_then_ends_the_call(
    livekit: LiveKitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "time_warning", lambda _: "Little time is left.")
    link = FakeLink(left_seconds=8.0)
    async with a_call(livekit, link) as call:
        await call.caller_joins()
        await call.caller.sound()
        began_at = time.monotonic()
        await call.link.recorded("time is left")
        assert await call.reason(within=15) is EndReason.TIME_LIMIT
        assert time.monotonic() - began_at == pytest.approx(8.0, abs=GOODBYE_SECONDS + 0.5)


async def test_an_end_command_cuts_a_long_speech_with_a_goodbye_that_is_heard(livekit: LiveKitServer) -> None:
    async with a_call(livekit) as call:
        caller = await call.caller_is_greeted()
        call.link.tell(Order.SAY, LONG)
        await caller.sound(since=time.monotonic())
        call.link.tell(Order.END, reason=EndReason.CLIENT_END)
        ended_at = time.monotonic()
        assert await call.reason(within=5) is EndReason.CLIENT_END
        assert time.monotonic() - ended_at < GOODBYE_SECONDS + 1
        await call.link.recorded(prompt.goodbye(EndReason.CLIENT_END))
        assert await livekit.identities(call.room) <= {CALLER}


async def test_an_end_without_a_reason_is_obeyed_without_a_word(livekit: LiveKitServer) -> None:
    async with a_call(livekit) as call:
        await call.caller_is_greeted()
        call.link.tell(Order.END)
        assert await call.reason(within=2) is EndReason.AGENT_LOST
        assert call.link.ended == []
        assert len(call.link.turns) == 1


async def test_the_caller_who_says_goodbye_hears_the_farewell_and_then_the_call_ends(livekit: LiveKitServer) -> None:
    async with a_call(livekit) as call:
        caller = await call.caller_is_greeted()
        await caller.type("goodbye and thank you")
        typed_at = time.monotonic()
        first, last = await caller.utterance(since=typed_at)
        assert await call.reason(within=6) is EndReason.GOODBYE
        assert last - first > 0.4


async def test_a_deleted_room_ends_the_call(livekit: LiveKitServer) -> None:
    async with a_call(livekit) as call:
        await call.caller_is_greeted()
        await livekit.delete_room(call.room)
        assert await call.reason(within=2) is EndReason.ROOM_LOST


async def test_an_agent_that_may_not_speak_leaves_before_it_publishes(livekit: LiveKitServer) -> None:
    link = FakeLink(may_speak=False)
    async with a_call(livekit, link) as call:
        assert await call.reason(within=3) is EndReason.AGENT_LOST
        assert link.ended == []
        assert await livekit.identities(call.room) == set()


async def test_an_agent_whose_identity_another_took_leaves_without_ending_the_session(livekit: LiveKitServer) -> None:
    async with a_call(livekit) as call:
        await call.caller_is_greeted()
        successor = rtc.Room()
        await successor.connect(livekit.url, livekit.agent_token(call.room))
        assert await call.reason(within=3) is EndReason.AGENT_LOST
        assert call.link.ended == []
        await successor.disconnect()


async def test_after_a_broken_connection_the_agent_speaks_only_with_leave(
    livekit: LiveKitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[Room] = []

    class KeptRoom(Room):
        def __init__(self) -> None:
            super().__init__()
            rooms.append(self)

    monkeypatch.setattr(call_module, "Room", KeptRoom)
    async with a_call(livekit) as call:
        await call.caller_is_greeted()
        call.link.may_speak = False
        (room,) = rooms
        await room.simulate_scenario(rtc.SimulateScenarioKind.SIMULATE_SIGNAL_RECONNECT)
        assert await call.reason(within=10) is EndReason.AGENT_LOST
        assert call.link.confirmed == 2


async def test_a_room_that_is_made_late_is_waited_for(livekit: LiveKitServer) -> None:
    async with a_call(livekit, is_room_late=True) as call:
        await wait_until_async(lambda: time.monotonic() - call.started_at > 0.5, what="the agent was refused once")
        await livekit.create_room(call.room)
        await call.caller_is_greeted()
        assert call.link.begun == 1


async def test_a_successor_knows_what_was_said_and_does_not_greet_again(livekit: LiveKitServer) -> None:
    history = (Turn(role="assistant", text=OPENING), Turn(role="user", text="tell me a joke please"))
    async with a_call(livekit, has_begun=True, history=history) as call:
        await call.caller_joins()
        await call.link.recorded(prompt.BACK_AGAIN)
        assert call.link.begun == 1


async def test_a_successor_says_what_the_client_wished_or_nothing(livekit: LiveKitServer) -> None:
    async with a_call(livekit, has_begun=True, failover_line="Here I am again.") as call:
        await call.caller_joins()
        await call.link.recorded("Here I am again.")
    async with a_call(livekit, has_begun=True, failover_line="") as call:
        caller = await call.caller_joins()
        await wait_until_async(lambda: call.link.begun, what="the caller can hear")
        await caller.type("which agent are you")
        await call.link.recorded("which agent are you")
        assert call.link.turns[0].role == "user"


async def test_a_fault_of_our_own_leaves_the_session_to_another_agent(
    livekit: LiveKitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_call(livekit) as call:
        await call.caller_is_greeted()
        monkeypatch.setattr(Clock, "look", lambda *_, **__: 1 / 0)
        assert await call.reason(within=6) is EndReason.AGENT_FAULT
        assert call.link.ended == []


async def test_a_pipeline_that_is_stuck_leaves_the_session_to_another_agent(
    livekit: LiveKitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "STUCK_SECONDS", 2.0)

    async def hang(*_: object) -> bool:
        await asyncio.Event().wait()
        return True

    async with a_call(livekit) as call:
        await call.caller_is_greeted()
        monkeypatch.setattr(JoinedClient, "publish_audio", hang)
        call.link.tell(Order.SAY, OPENING)
        assert await call.reason(within=8) is EndReason.AGENT_FAULT
        assert call.link.ended == []


async def test_neither_a_long_speech_nor_a_long_silence_is_a_pipeline_that_is_stuck(
    livekit: LiveKitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "STUCK_SECONDS", 2.0)
    async with a_call(livekit) as call:
        caller = await call.caller_is_greeted()
        call.link.tell(Order.SAY, "One, two, three, four, five, six, seven, eight, nine, and ten.")
        began_at = await caller.sound(since=time.monotonic())
        assert await caller.silence(seconds=3.0) > began_at + 2.5
        assert not call.bot.done()


async def test_the_tone_is_heard_until_the_caller_leaves(livekit: LiveKitServer) -> None:
    async with a_call(livekit, agent_bot="tone", caller_grace_seconds=0.5) as call:
        await call.caller_joins()
        # One who leaves within moments of joining may not be seen to leave before the room is closed.
        await wait_until_async(lambda: len(call.caller.heard) > 100, what="a second of sound is heard")
        assert call.link.begun == 1
        await call.caller.leave()
        assert await call.reason(within=3) is EndReason.CALLER_LEFT


async def test_a_room_that_closes_because_nobody_is_in_it_is_no_fault_of_the_platform(livekit: LiveKitServer) -> None:
    async with a_call(livekit, departure_timeout=1, caller_grace_seconds=15.0) as call:
        await call.caller_is_greeted()
        await call.caller.leave()
        assert await call.reason(within=6) is EndReason.CALLER_LEFT
