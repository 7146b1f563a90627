"""The words of every agent."""

import pytest

from backend.agent import prompt
from backend.agent.ending import GOODBYE_SECONDS
from backend.common.contract import EndReason
from tests.fakes.fake_speech import say

RATE = 16_000
VENDOR_SECONDS = 0.5
"""From the text to the vendor's first sound."""


@pytest.mark.parametrize(
    ("session_prompt", "told"), [("", prompt.DEFAULT_PROMPT), ("You are a cook.", "You are a cook.")]
)
def test_the_critical_rules_follow_every_prompt(session_prompt: str, told: str) -> None:
    assert prompt.system_prompt(session_prompt) == f"{told}\n\n{prompt.CRITICAL_RULES}"


@pytest.mark.parametrize("tag", ["happy", "sad", "angry", "surprised", "fearful", "disgusted"])
def test_the_rules_name_every_emotion_that_may_be_shown(tag: str) -> None:
    assert f"[{tag}]" in prompt.CRITICAL_RULES


@pytest.mark.parametrize("name", ["user_456", "", "a@b.example", "7"])
def test_an_id_is_not_spoken_as_a_name(name: str) -> None:
    assert prompt.opening_line(name) == "Hello! How can I help you today?"


@pytest.mark.parametrize("name", ["Ada", "Anne-Marie O'Neil", "Zoë"])
def test_a_name_is_spoken(name: str) -> None:
    assert name in prompt.opening_line(name)


@pytest.mark.parametrize(
    ("left", "said"), [(30.0, "30 seconds"), (28.9, "30 seconds"), (9.0, "10 seconds"), (0.1, "5 seconds")]
)
def test_the_time_that_is_left_is_said_in_round_numbers(left: float, said: str) -> None:
    assert said in prompt.time_warning(left)


@pytest.mark.parametrize("reason", sorted({prompt.goodbye(reason): reason for reason in EndReason}.values()))
def test_the_last_words_are_over_before_the_time_for_them_is(reason: EndReason) -> None:
    said = prompt.goodbye(reason)
    seconds = len(say(said, RATE)) / 2 / RATE if said else 0.0
    assert seconds + VENDOR_SECONDS < GOODBYE_SECONDS


def test_a_successor_says_what_was_wished_also_nothing_else_its_own_words() -> None:
    assert [prompt.failover_line(wished) for wished in ("I am back.", "", None)] == [
        "I am back.",
        "",
        prompt.BACK_AGAIN,
    ]


def test_after_a_farewell_nothing_more_is_said() -> None:
    assert prompt.goodbye(EndReason.GOODBYE) == ""
    assert prompt.goodbye(EndReason.CLIENT_END) == prompt.FAREWELL
