"""What the voice without keys answers."""

import pytest
from pipecat.frames.frames import (
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext

from backend.agent.voices import GoodbyeFrame
from backend.agent.voices.demo_mind import DemoMind, Rules, duration, find, normalised
from backend.agent.voices.demo_topics import JOKES, TOPICS, UNCLEAR
from tests.running_service import facts, running_service

SPOKEN = [question for topic in TOPICS for question in topic.spoken]


def answer(text: str, last_answer: str = "", **changes: object) -> str:
    return Rules(facts(**changes)).answer(text, last_answer)[0]


@pytest.mark.parametrize("question", [question for topic in TOPICS for question in topic.spoken + topic.typed])
def test_every_way_to_ask_finds_its_topic(question: str) -> None:
    topic = find(question.upper() + "!!")
    assert topic is not None
    assert question in topic.spoken + topic.typed


def test_no_question_belongs_to_two_topics() -> None:
    asked = [normalised(question) for topic in TOPICS for question in topic.spoken + topic.typed]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hey, could you tell me what time it is please", "What time is it?"),
        ("how long have we been talking now", "How long have we been talking?"),
        (f"{UNCLEAR} please tell me a joke", "Please tell me a joke."),
        ("ok, goodbye", "Goodbye."),
    ],
)
def test_a_typed_question_need_not_be_word_for_word(text: str, meant: str) -> None:
    topic = find(text)
    assert topic is not None
    assert meant in topic.spoken


@pytest.mark.parametrize(
    "text",
    [
        "what is the capital of australia",
        "i do not want to say goodbye yet because i like this",
        UNCLEAR,
        "",
        "...",
    ],
)
def test_what_is_none_of_the_questions_is_not_guessed(text: str) -> None:
    assert find(text) is None
    assert "You can ask me" in answer(text)


def test_hints_show_other_questions_each_time() -> None:
    rules = Rules(facts())
    assert rules.answer(UNCLEAR, "")[0] != rules.answer(UNCLEAR, "")[0]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("How long have we talked?", "1 minute and 15 seconds"),
        ("How much time do we have left?", "10 seconds"),
        ("Which agent am I talking to?", "W X Y Z"),
        ("Which session is this?", "A B C D"),
        ("Where are you running?", "box-1"),
        ("What is my name?", "Ada"),
        ("How many times have I been handed over?", "Not once"),
    ],
)
def test_facts_are_those_of_the_call(question: str, said: str) -> None:
    assert said in answer(question)


def test_a_successor_counts_the_handovers_before_it() -> None:
    assert "2 times" in answer("How many times have I been handed over?", generation=3)
    assert "1 time." in answer("How many times have I been handed over?", generation=2)


def test_there_may_be_no_limit_and_no_name() -> None:
    assert "no limit" in answer("How much time is left?", left_seconds=lambda: None)
    assert "did not" in answer("What is my name?", user_name="")


def test_it_repeats_what_it_said_braces_and_all() -> None:
    assert answer("Repeat that please.", "Two {plus} two.") == "Two {plus} two."


def test_jokes_take_turns() -> None:
    rules = Rules(facts())
    assert {rules.answer("Tell me a joke.", "")[0] for _ in JOKES} == set(JOKES)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 seconds"), (1, "1 second"), (59.6, "1 minute"), (121, "2 minutes and 1 second"), (-3, "0 seconds")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(("text", "ends"), [("goodbye", 1), ("tell me a joke", 0)])
async def test_goodbye_is_followed_by_the_frame_that_ends_the_call(text: str, ends: int) -> None:
    async with running_service(DemoMind(facts())) as mind:
        await mind.send(LLMContextFrame(LLMContext([{"role": "user", "content": text}])))
        await mind.got(LLMFullResponseEndFrame)
        await mind.send(LLMContextFrame(LLMContext([{"role": "user", "content": "what is green room"}])))
        await mind.got(LLMTextFrame)
        kinds = [
            type(frame)
            for frame in mind.all(object)  # type: ignore[type-var]  # all of them
            if isinstance(frame, LLMFullResponseStartFrame | LLMTextFrame | LLMFullResponseEndFrame | GoodbyeFrame)
        ]
    reply = [LLMFullResponseStartFrame, LLMTextFrame, LLMFullResponseEndFrame]
    assert kinds[: 3 + ends] == reply + [GoodbyeFrame] * ends


async def test_a_turn_without_words_gets_a_hint() -> None:
    context = LLMContext([{"role": "user", "content": "goodbye"}, {"role": "developer", "content": "a cough"}])
    async with running_service(DemoMind(facts())) as mind:
        await mind.send(LLMContextFrame(context))
        assert "You can ask me" in (await mind.got(LLMTextFrame)).text
        assert not mind.all(GoodbyeFrame)


def test_every_spoken_question_is_of_words_that_can_be_heard() -> None:
    assert all(set(normalised(question)) <= set("abcdefghijklmnopqrstuvwxyz' ") for question in SPOKEN)
