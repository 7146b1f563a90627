"""How a session ends: once, for one reason, with the same figures for all, and what is left of it."""

from dataclasses import replace

import pytest

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment, EndReason, Word
from tests.integration.desk import FAST, Desk

OPENS_IT = "opens the room"
DAY_MS = 24 * 3_600_000


@pytest.mark.parametrize("state", ["waiting", "assigned", "live", "recovering"])
def test_an_end_works_in_every_state_and_repeats_its_figures(desk: Desk, state: str) -> None:
    agent = None
    if state == "waiting":
        desk.session()
    elif state == "assigned":
        agent, _ = desk.assigned()
    else:
        agent, _ = desk.live()
    if agent and state == "recovering":
        desk.do(x.agent_exited(agent, exit_code=-9))
    first = desk.do(x.end_session("s", EndReason.CLIENT_END))
    again = desk.do(x.end_session("s", EndReason.TIME_LIMIT))
    assert first
    assert again
    assert (first.is_first, again.is_first) == (True, False)
    assert (first.ended_at_ms, first.billed_ms, first.agent_id) == (again.ended_at_ms, again.billed_ms, again.agent_id)
    assert desk.field("session:s", "end_reason") == "client_end"
    assert desk.client.zcard(keys.SESSION_WAITING) == 0
    assert desk.client.zrange(keys.SESSION_ENDED, 0, -1, withscores=True) == [("s", first.ended_at_ms)]
    if agent and state != "recovering":
        assert desk.do(x.heartbeat(agent, None)).word is Word.STOP


def test_the_end_of_an_unknown_session_is_no_end(desk: Desk) -> None:
    assert desk.do(x.end_session("nobody", EndReason.CLIENT_END)) is None
    assert not desk.client.exists("session:nobody")


@pytest.mark.parametrize("reason", list(EndReason))
def test_an_end_says_why_and_whose_doing_it_was(desk: Desk, reason: EndReason) -> None:
    desk.session()
    desk.do(x.end_session("s", reason))
    assert desk.field("session:s", "end_reason") == reason
    assert desk.field("session:s", "ended_by") == reason.cause


def test_what_was_said_and_what_opens_a_room_is_deleted_at_the_end(desk: Desk) -> None:
    agent, _ = desk.agent("a", room="s", room_token=OPENS_IT, room_for_ms=60_000)
    work = Assignment(session_id=desk.session(prompt={"system_prompt": "Be kind."}).session_id, generation=1)
    desk.do(x.confirm_claim(agent, work))
    desk.client.rpush(keys.session_turns("s"), "hello")
    desk.end()
    for key in (keys.session_prompt("s"), keys.session_turns("s"), keys.session_pid("s")):
        assert not desk.client.exists(key)
    assert desk.field("session:s", "room_token") == ""
    assert desk.field("agent:a", "room_token") == ""


def test_an_ended_session_is_no_longer_open_and_stays_listed(desk: Desk) -> None:
    desk.session()
    desk.end()
    assert desk.client.zcard(keys.SESSION_OPEN) == 0
    assert desk.client.scard(keys.user_sessions("u")) == 0
    assert desk.client.zrange(keys.SESSION_ALL, 0, -1) == ["s"]
    assert desk.client.zrange(keys.DEADLINES, 0, -1) == []


def test_a_call_that_never_began_took_no_time(desk: Desk) -> None:
    desk.session()
    end = desk.do(x.end_session("s", EndReason.CLIENT_END))
    assert end
    assert (end.started_at_ms, end.billed_ms) == (None, 0)
    assert desk.field("session:s", "conversationDuration") == "0"
    assert desk.field("session:s", "conversationStartTime") == ""


def test_minutes_are_rounded_up_once(desk: Desk) -> None:
    desk.live()
    desk.client.hincrby("session:s", "started_at_ms", -60_000)
    desk.client.hset("session:s", "silent_ms", 5_000)
    desk.end()
    assert 55 <= desk.number("session:s", "conversationDuration") < 60
    assert desk.field("session:s", "conversationDurationMinutes") == "1"


def test_the_silence_of_a_failover_is_not_billed(desk: Desk) -> None:
    agent, _ = desk.live()
    desk.do(x.agent_exited(agent, exit_code=-9))
    desk.client.hincrby("session:s", "silent_since_ms", -3_000)
    desk.client.hincrby("session:s", "started_at_ms", -9_000)
    successor, _ = desk.agent("b")
    work = Assignment(session_id="s", generation=2)
    desk.do(x.confirm_claim(successor, work))
    assert desk.field("session:s", "silent_since_ms"), "the caller does not hear it yet"
    desk.do(x.begin_session(successor, work))
    assert desk.field("session:s", "silent_since_ms") == "", "what is said from now on is billed"
    silent_ms = desk.number("session:s", "silent_ms")
    end = desk.do(x.end_session("s", EndReason.GOODBYE, generation=2))
    assert end
    assert end.started_at_ms
    assert 3_000 <= end.silent_ms == silent_ms < 8_000
    assert end.billed_ms == end.ended_at_ms - end.started_at_ms - end.silent_ms


def test_the_silence_before_an_end_is_not_billed_either(desk: Desk) -> None:
    agent, _ = desk.live()
    desk.do(x.agent_exited(agent, exit_code=-9))
    desk.client.hincrby("session:s", "silent_since_ms", -5_000)
    desk.client.hincrby("session:s", "started_at_ms", -9_000)
    end = desk.do(x.end_session("s", EndReason.CLIENT_END))
    assert end
    assert 4_000 <= end.billed_ms < 9_000


def test_what_an_agent_could_not_say_before_is_billed_to_when_its_call_was_over(desk: Desk) -> None:
    _, work = desk.live()
    now_ms = desk.number("session:s", "started_at_ms")
    desk.client.hset("session:s", "started_at_ms", now_ms - 9_000)
    end = desk.do(x.end_session("s", EndReason.SILENCE, generation=work.generation, ended_at_ms=now_ms - 5_000))
    assert end
    assert (end.ended_at_ms, end.billed_ms) == (now_ms - 5_000, 4_000)
    assert desk.number("session:s", "conversationDuration") == 4


@pytest.mark.parametrize(("said_ms", "billed_ms"), [(-60_000, 0), (-5_000, 4_000), (None, 2_000)])
def test_an_end_that_only_the_launcher_reports_is_billed_to_its_moment_or_to_the_last_heartbeat(
    desk: Desk, said_ms: int | None, billed_ms: int
) -> None:
    agent, _ = desk.live()
    now_ms = desk.number("session:s", "started_at_ms")
    desk.client.hset("session:s", "started_at_ms", now_ms - 9_000)
    desk.client.zadd(keys.DEADLINES, {"agent:a": now_ms - 7_000 + FAST.lease * 2 // 3})
    ended_at_ms = None if said_ms is None else now_ms + said_ms
    desk.do(x.agent_exited(agent, exit_code=0, end_reason=EndReason.GOODBYE, ended_at_ms=ended_at_ms))
    end = desk.do(x.end_session("s", EndReason.CLIENT_END))
    assert end
    assert end.billed_ms == billed_ms
    assert end.started_at_ms
    assert end.ended_at_ms >= end.started_at_ms


def test_a_clock_that_runs_ahead_bills_nothing_of_the_future(desk: Desk) -> None:
    _, work = desk.live()
    desk.do(x.end_session("s", EndReason.SILENCE, generation=work.generation, ended_at_ms=2**52))
    assert desk.number("session:s", "ended_at_ms") <= desk.valkey.now_ms()


def test_nothing_is_billed_beyond_what_was_granted(desk: Desk) -> None:
    desk.live()
    desk.client.hincrby("session:s", "started_at_ms", -700_000)  # of 600 s, and everyone was away
    desk.client.hset("session:s", "silent_ms", 4_000)
    end = desk.do(x.end_session("s", EndReason.CLIENT_END))
    assert end
    assert end.billed_ms == 596_000


def test_turns_are_kept_for_a_successor_and_the_oldest_give_way(desk: Desk) -> None:
    agent, work = desk.live()
    for turn in ("aaaa", "bbbb", "cc", "dd"):
        assert desk.do(x.record_turn(agent, work, turn, most=3, most_bytes=1_000))
    assert desk.client.lrange(keys.session_turns("s"), 0, -1) == ["bbbb", "cc", "dd"]
    assert desk.do(x.record_turn(agent, work, "eeee", most=3, most_bytes=6))
    assert desk.client.lrange(keys.session_turns("s"), 0, -1) == ["dd", "eeee"]
    assert desk.client.ttl(keys.session_turns("s")) > 0


def test_what_is_said_after_the_end_or_by_a_stale_agent_is_not_kept(desk: Desk) -> None:
    agent, work = desk.live()
    desk.do(x.agent_exited(agent, exit_code=-9))
    successor, _ = desk.agent("b")
    assert not desk.do(x.record_turn(agent, work, "I am not dead", most=3, most_bytes=100))
    assert not desk.do(x.record_turn(agent, replace(work, generation=2), "nor stale", most=3, most_bytes=100))
    assert not desk.do(x.record_turn(successor, work, "nor am I the first", most=3, most_bytes=100))
    desk.end()
    assert not desk.do(x.record_turn(successor, replace(work, generation=2), "goodbye", most=3, most_bytes=100))
    assert not desk.client.exists(keys.session_turns("s"))


def test_a_stale_agent_cannot_end_the_call_of_its_successor(desk: Desk) -> None:
    agent, work = desk.live()
    desk.do(x.agent_exited(agent, exit_code=-9))
    assert desk.do(x.end_session("s", EndReason.GOODBYE, generation=work.generation)) is None
    assert desk.field("session:s", "state") == "waiting"


def test_an_agent_that_said_goodbye_is_not_replaced_when_its_exit_is_reported_first(desk: Desk) -> None:
    agent, work = desk.live()
    assert desk.do(x.agent_exited(agent, exit_code=0, end_reason=EndReason.GOODBYE)).state == "ended"
    late = desk.do(x.end_session("s", EndReason.SILENCE, generation=work.generation))
    assert late
    assert not late.is_first
    assert desk.field("session:s", "end_reason") == "goodbye"


@pytest.mark.parametrize("exit_code", [0, -9, None])
def test_an_exit_is_acted_on_once_and_not_for_another_process_with_the_same_id(
    desk: Desk, exit_code: int | None
) -> None:
    agent, _ = desk.live()
    assert not desk.do(x.agent_exited(Agent(id="a", nonce="other", host_id="h"), exit_code=0)).is_first
    report = desk.do(x.agent_exited(agent, exit_code=exit_code))
    assert (report.session_id, report.state, report.generation) == ("s", "waiting", 2)
    assert not desk.do(x.agent_exited(agent, exit_code=-9)).is_first
    assert desk.field("session:s", "generation") == "2"
    assert desk.field("agent:a", "exit") == ("" if exit_code is None else str(exit_code))


def test_an_exit_frees_the_slot_and_leaves_a_record_for_late_reports(desk: Desk) -> None:
    agent, _ = desk.agent()
    assert desk.do(x.agent_exited(agent, exit_code=0)).session_id == ""
    assert desk.client.scard(keys.host_agents("h")) == 0
    assert desk.client.zcard(keys.POOL_READY) == 0
    assert desk.field("agent:a", "state") == "gone"
    assert 0 < desk.client.pttl("agent:a") <= FAST.tombstone_ttl
    assert not desk.client.exists(keys.agent_inbox("a"))


def test_an_exit_that_nobody_reserved_changes_nothing(desk: Desk) -> None:
    assert not desk.do(x.agent_exited(Agent(id="nobody", nonce="n", host_id="h"), exit_code=0)).is_first
    assert not desk.client.exists("agent:nobody")


def test_an_agent_that_does_not_go_is_killed_and_its_slot_comes_back(desk: Desk) -> None:
    agent, _ = desk.live()
    desk.end()
    assert desk.client.scard(keys.host_agents("h")) == 1
    assert desk.lapse("stop:a") == (agent,)
    assert desk.client.scard(keys.host_agents("h")) == 0


def test_an_ended_session_leaves_the_outbox_once_and_its_record_stays_a_week(desk: Desk) -> None:
    desk.session()
    desk.end()
    assert desk.client.zrange(keys.SETTLE_DUE, 0, -1) == ["s"]
    assert desk.client.pttl("session:s") > 6 * DAY_MS
    desk.client.pexpire("session:s", 1_000)  # it lay in the outbox for nearly a week
    assert desk.do(x.session_settled("s"))
    assert not desk.do(x.session_settled("s"))
    assert desk.client.zcard(keys.SETTLE_DUE) == 0
    assert 6 * DAY_MS < desk.client.pttl("session:s") <= 7 * DAY_MS
    assert desk.field("session:s", "end_reason") == "client_end"
    assert abs(desk.number("session:s", "settled_at_ms") - desk.valkey.now_ms()) < 5_000


def test_a_session_that_goes_on_cannot_be_settled(desk: Desk) -> None:
    desk.live()
    assert not desk.do(x.session_settled("s"))
    assert desk.client.pttl("session:s") > 6 * DAY_MS
