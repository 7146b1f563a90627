"""What happens to a session whose agent is lost, and when a silent agent counts as lost."""

import time

import pytest

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment, Word
from tests.integration.desk import FAST, Desk


def test_a_session_that_lost_its_agent_is_served_before_all_who_wait(desk: Desk) -> None:
    agent, _ = desk.live("first")
    desk.session("second")
    desk.do(x.agent_exited(agent, exit_code=-9))
    assert desk.agent("b")[1] == Assignment(session_id="first", generation=2)
    assert desk.agent("c")[1] == Assignment(session_id="second", generation=1)


def test_a_session_that_lost_its_agent_takes_a_warm_one_in_the_same_step(desk: Desk) -> None:
    agent, _ = desk.live()
    desk.agent("b")
    report = desk.do(x.agent_exited(agent, exit_code=-9))
    assert (report.state, report.generation, desk.field("session:s", "agent_id")) == ("assigned", 2, "b")


def test_a_failover_keeps_the_start_and_the_call_is_live_again_once_confirmed(desk: Desk) -> None:
    agent, _ = desk.live()
    started_at = desk.field("session:s", "started_at_ms")
    desk.do(x.agent_exited(agent, exit_code=-9))
    successor, _ = desk.agent("b", pid=4712)
    assert desk.field("session:s", "state") == "assigned"
    desk.do(x.confirm_claim(successor, Assignment(session_id="s", generation=2)))
    assert (desk.field("session:s", "state"), desk.field("session:s", "started_at_ms")) == ("live", started_at)
    assert desk.client.get("agent:s:pid") == desk.field("session:s", "agent_pid") == "4712"


def test_the_late_exit_of_a_replaced_agent_leaves_the_call_alone(desk: Desk) -> None:
    first, _ = desk.live()
    desk.lapse("agent:a")
    desk.agent("b")
    desk.do(x.agent_exited(first, exit_code=-9))
    assert desk.field("session:s", "agent_id") == "b"


def test_a_session_that_kills_its_agents_ends_after_three(desk: Desk) -> None:
    agent, _ = desk.live()
    for name in "bcd":
        assert desk.do(x.agent_exited(agent, exit_code=-11)).state == "waiting"
        agent, _ = desk.agent(name)
    assert desk.do(x.agent_exited(agent, exit_code=-11)).state == "ended"
    assert (desk.field("session:s", "end_reason"), desk.field("session:s", "ended_by")) == ("agent_lost", "platform")


def test_agents_that_are_lost_now_and_then_do_not_end_a_session(desk: Desk) -> None:
    agent, _ = desk.live()
    for name in "bcdef":
        assert desk.do(x.agent_exited(agent, exit_code=-11)).state == "waiting"
        agent, _ = desk.agent(name)
        lost_at_ms = [int(at) - FAST.failover_window // 3 for at in desk.field("session:s", "lost_at_ms").split()]
        desk.client.hset("session:s", "lost_at_ms", " ".join(map(str, lost_at_ms)))
    assert desk.field("session:s", "agent_id") == "f"


def test_what_was_lost_a_minute_ago_does_not_forgive_what_is_lost_now(desk: Desk) -> None:
    agent, _ = desk.live()
    for name in "bc":
        desk.do(x.agent_exited(agent, exit_code=-11))
        agent, _ = desk.agent(name)
    first, second = map(int, desk.field("session:s", "lost_at_ms").split())
    desk.client.hset("session:s", "lost_at_ms", f"{first} {second - FAST.failover_window - 1}")
    for name in "de":
        assert desk.do(x.agent_exited(agent, exit_code=-11)).state == "waiting"
        agent, _ = desk.agent(name)
    assert desk.do(x.agent_exited(agent, exit_code=-11)).state == "ended"


def test_a_session_that_never_began_waits_from_its_creation_on_however_often_it_lost_an_agent(desk: Desk) -> None:
    agent, _ = desk.assigned()
    created_at_ms = desk.client.hincrby("session:s", "created_at_ms", -200)  # it waited before it had an agent
    desk.do(x.agent_exited(agent, exit_code=-9))
    assert desk.due("waiting:s") == created_at_ms + FAST.start
    desk.lapse("waiting:s")
    assert desk.field("session:s", "end_reason") == "start_timeout"


def test_a_call_that_finds_no_successor_ends_as_agent_lost(desk: Desk) -> None:
    agent, _ = desk.live()
    desk.client.hincrby("session:s", "created_at_ms", -60_000)  # it has long been going on
    desk.do(x.agent_exited(agent, exit_code=-9))
    assert desk.due("waiting:s") == desk.number("session:s", "silent_since_ms") + FAST.start
    desk.lapse("waiting:s")
    assert (desk.field("session:s", "end_reason"), desk.field("session:s", "ended_by")) == ("agent_lost", "platform")
    assert desk.field("session:s", "state") == "ended"


def test_an_agent_that_falls_silent_is_replaced_and_its_slot_comes_back(desk: Desk) -> None:
    agent, _ = desk.live()
    kill = desk.sweep_until(lambda kill: len(kill) > 1)
    assert kill == [agent, agent], "once when its lease lapsed, once when no exit was reported"
    assert desk.field("session:s", "state") in ("waiting", "ended")
    assert desk.client.scard(keys.host_agents("h")) == 0


def test_what_passed_since_the_last_heartbeat_of_a_lost_agent_is_not_billed(desk: Desk) -> None:
    desk.live()
    desk.client.hincrby("session:s", "started_at_ms", -10_000)
    last_heard = desk.due("agent:a") - FAST.lease
    desk.sweep_until(bool)
    assert desk.number("session:s", "silent_since_ms") == last_heard


def test_an_agent_that_was_last_heard_of_before_the_call_began_costs_no_more_than_the_call(desk: Desk) -> None:
    desk.live()
    started_at = desk.number("session:s", "started_at_ms")
    desk.lapse("agent:a")
    assert desk.number("session:s", "silent_since_ms") == started_at


def test_an_exit_that_is_reported_late_is_billed_to_one_heartbeat_after_the_last(desk: Desk) -> None:
    agent, _ = desk.live()
    desk.client.hincrby("session:s", "started_at_ms", -10_000)
    heard_at = desk.valkey.now_ms() - 5_000
    desk.client.zadd(keys.DEADLINES, {"agent:a": heard_at + FAST.lease})
    desk.do(x.agent_exited(agent, exit_code=None))
    assert desk.number("session:s", "silent_since_ms") == heard_at + FAST.lease / 3


def test_an_exit_that_is_reported_at_once_is_billed_to_its_moment(desk: Desk) -> None:
    agent, _ = desk.live()
    desk.client.zincrby(keys.DEADLINES, 60_000, "agent:a")  # no test is so slow that a heartbeat would be due
    before = desk.valkey.now_ms()
    desk.do(x.agent_exited(agent, exit_code=-9))
    assert before <= desk.number("session:s", "silent_since_ms") <= desk.valkey.now_ms()


def test_a_silent_warm_agent_is_not_handed_out(desk: Desk) -> None:
    agent, _ = desk.agent()
    assert desk.lapse("agent:a") == (agent,)
    assert desk.session().state == "waiting"


def test_a_sweep_handles_no_more_than_it_was_told_to(desk: Desk) -> None:
    for number in range(5):
        desk.session(f"s{number}")
    desk.client.zadd(keys.DEADLINES, {f"waiting:s{number}": 1 for number in range(5)})
    handled = [desk.do(x.expire_leases(most=2)).handled for _ in range(4)]
    assert handled == [2, 2, 1, 0]


def test_after_a_gap_between_sweeps_every_agent_gets_one_more_lease(desk: Desk) -> None:
    agent, work = desk.live()
    time.sleep(0.5)  # longer than lease and sweep_gap: Redis was frozen, or every sweeper was
    assert desk.do(x.expire_leases()).kill == ()
    assert desk.do(x.heartbeat(agent, work)).word is Word.KEEP
    assert desk.field("session:s", "generation") == "1"


@pytest.mark.parametrize("step_ms", [-60_000, 60_000])
def test_a_step_of_the_clock_either_way_proves_nothing(desk: Desk, step_ms: int) -> None:
    desk.live()
    desk.client.zadd(keys.DEADLINES, {"agent:a": 1})
    desk.client.hset(keys.SWEEP, "swept_at_ms", desk.valkey.now_ms() + step_ms)
    assert desk.do(x.expire_leases()).handled == 0
    assert desk.field("session:s", "generation") == "1"


def test_sweeps_that_always_come_late_still_replace_an_agent_that_fell_silent(desk: Desk) -> None:
    agent, _ = desk.live()
    kill: list[Agent] = []
    for _ in range(8):
        time.sleep(0.25)  # later than sweep_gap allows, each time
        kill += desk.do(x.expire_leases()).kill
    assert agent in kill


def test_after_a_gap_an_agent_that_stays_silent_is_still_replaced(desk: Desk) -> None:
    agent, _ = desk.live()
    time.sleep(0.5)  # the gap
    assert agent in desk.sweep_until(bool)


def test_after_a_gap_a_waiting_session_is_not_given_up_at_once(desk: Desk) -> None:
    desk.session()
    time.sleep(0.5)  # the gap
    desk.do(x.expire_leases())
    assert desk.agent()[1] == Assignment(session_id="s", generation=1)


def test_an_exit_report_acts_at_once_also_while_nothing_expires(desk: Desk) -> None:
    agent, _ = desk.live()
    desk.client.hset(keys.SWEEP, "swept_at_ms", 0)
    desk.do(x.expire_leases())
    assert desk.do(x.agent_exited(agent, exit_code=-9)).state == "waiting"
