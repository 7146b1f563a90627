"""When a call is over, and what the agent says of its own accord."""

import pytest

from backend.agent import watchdog
from backend.agent.rules import ANSWER_SECONDS, SPEECH_SECONDS, Clock, Faults, Patience, Remedy, Reminder
from backend.common.contract import EndReason

PATIENCE = Patience(nobody_came=30, caller_grace=10, silence_ask=20, silence_end=45)


def a_clock(*, begun_at: float | None = 0.0, left_seconds: float = 600.0, has_begun: bool = False) -> Clock:
    clock = Clock(PATIENCE, 0.0, has_begun=has_begun)
    if begun_at is not None:
        clock.begin(begun_at, left_seconds)
    return clock


def look(clock: Clock, now: float, *, here: bool = True, connected: bool = True) -> EndReason | Reminder | None:
    return clock.look(now, is_caller_here=here, is_connected=connected)


def test_nobody_came_only_after_the_whole_wait() -> None:
    clock = a_clock(begun_at=None)
    assert look(clock, 29.9, here=False) is None
    assert look(clock, 30.0, here=False) is EndReason.NOBODY_CAME


def test_one_who_is_in_the_room_but_cannot_hear_gets_the_grace_time_on_top() -> None:
    clock = a_clock(begun_at=None)
    assert look(clock, 30.0) is None
    assert look(clock, 40.0) is EndReason.NOBODY_CAME


def test_one_who_left_before_hearing_anything_never_came() -> None:
    clock = a_clock(begun_at=None)
    assert look(clock, 5.0) is None
    assert look(clock, 16.0, here=False) is None
    assert look(clock, 30.0, here=False) is EndReason.NOBODY_CAME


def test_a_caller_who_left_may_come_back_within_the_grace_time() -> None:
    clock = a_clock()
    assert look(clock, 5.0, here=False) is None
    assert look(clock, 14.9, here=False) is None
    assert look(clock, 15.0) is None
    assert look(clock, 16.0, here=False) is None
    assert look(clock, 26.0, here=False) is EndReason.CALLER_LEFT


def test_a_server_that_died_is_not_a_caller_who_left() -> None:
    clock = a_clock()
    look(clock, 5.0, here=False, connected=False)
    assert look(clock, 15.0, here=False, connected=False) is EndReason.ROOM_LOST


def test_a_successor_gives_the_caller_the_grace_time_and_not_the_time_to_come() -> None:
    clock = a_clock(begun_at=None, has_begun=True)
    look(clock, 0.0, here=False)
    assert look(clock, 10.0, here=False) is EndReason.CALLER_LEFT


def test_a_successor_whom_the_caller_never_hears_does_not_wait_for_ever() -> None:
    assert look(a_clock(begun_at=None, has_begun=True), 40.0) is EndReason.CALLER_LEFT


def test_silence_is_asked_about_once_and_then_ends_the_call() -> None:
    clock = a_clock()
    assert look(clock, 19.9) is None
    assert look(clock, 20.0) is Reminder.STILL_THERE
    clock.agent_spoke(22.0)
    assert look(clock, 42.0) is None
    assert look(clock, 45.0) is EndReason.SILENCE


def test_words_of_the_caller_break_the_silence_and_it_may_be_asked_about_again() -> None:
    clock = a_clock()
    look(clock, 20.0)
    clock.caller_spoke(25.0)
    assert look(clock, 44.9) is None
    assert look(clock, 45.0) is Reminder.STILL_THERE


def test_the_agents_own_words_break_the_silence() -> None:
    clock = a_clock()
    clock.agent_spoke(15.0)
    assert look(clock, 34.9) is None


def test_the_time_in_which_the_caller_was_away_is_no_silence() -> None:
    clock = a_clock()
    look(clock, 15.0, here=False)
    assert look(clock, 24.0) is None
    assert look(clock, 34.9) is None


@pytest.mark.parametrize(("left_seconds", "warned_at"), [(600.0, 570.0), (40.0, 10.0), (30.0, 20.0)])
def test_the_time_limit_is_announced_once_before_it_ends_the_call(left_seconds: float, warned_at: float) -> None:
    clock = a_clock(left_seconds=left_seconds)
    clock.agent_spoke(warned_at - 1)
    assert look(clock, warned_at - 0.1) is None
    assert look(clock, warned_at) is Reminder.TIME_WARNING
    assert look(clock, warned_at + 1) is None
    assert look(clock, left_seconds) is EndReason.TIME_LIMIT


def test_the_time_limit_holds_while_the_caller_is_away() -> None:
    clock = a_clock(left_seconds=5.0)
    assert look(clock, 5.0, here=False) is EndReason.TIME_LIMIT


def test_time_is_counted_from_the_moment_the_caller_could_hear() -> None:
    clock = a_clock(begun_at=None)
    assert (clock.left_seconds(3.0), clock.has_begun) == (None, False)
    clock.begin(4.0, 100.0)
    clock.begin(4.5, 90.0)  # what Redis said, a moment later
    assert (clock.left_seconds(10.0), clock.has_begun) == (84.5, True)


def test_the_second_failed_answer_in_a_row_is_one_too_many() -> None:
    faults = Faults()
    assert faults.answer_failed() is Remedy.APOLOGISE
    assert faults.answer_failed() is Remedy.GIVE_UP


def test_an_answer_between_two_failures_starts_the_count_anew() -> None:
    faults = Faults()
    faults.answer_failed()
    faults.answer_asked(0.0)
    faults.answer_began()
    assert faults.answer_failed() is Remedy.APOLOGISE


def test_an_answer_is_late_only_while_it_is_awaited() -> None:
    faults = Faults()
    faults.answer_asked(0.0)
    assert not faults.is_late(ANSWER_SECONDS - 0.1)
    assert faults.is_late(ANSWER_SECONDS)
    faults.answer_dropped()
    assert not faults.is_late(ANSWER_SECONDS)


def test_an_answer_without_a_word_is_a_failure_and_is_counted_once() -> None:
    faults = Faults()
    faults.answer_asked(0.0)
    assert faults.answer_ended() is Remedy.APOLOGISE
    assert faults.answer_ended() is None


def test_ears_that_understand_nothing_twice_are_excused_and_then_given_up() -> None:
    faults = Faults()
    assert [faults.turn_ended("", 2.0) for _ in range(3)] == [None, Remedy.APOLOGISE, Remedy.GIVE_UP]


def test_a_turn_that_was_understood_starts_the_count_anew() -> None:
    faults = Faults()
    heard = [faults.turn_ended(text, 2.0) for text in ("", "hello", "", "hello")]
    assert heard == [None] * 4


def test_a_cough_that_was_not_understood_is_no_fault() -> None:
    faults = Faults()
    assert [faults.turn_ended("", SPEECH_SECONDS / 2) for _ in range(5)] == [None] * 5


@pytest.mark.parametrize(
    ("gone_by", "now", "expected"), [(None, 7.0, 3.0), (100.0, 7.0, 3.0), (100.0, 100.5, 1.5), (100.0, 103.0, -1.0)]
)
def test_the_watchdog_runs_out_when_the_loop_is_stuck_or_the_time_is_over(
    gone_by: float | None, now: float, expected: float
) -> None:
    assert watchdog.seconds_left(gone_by, now) == expected
