"""How a session starts: who is admitted, what is stored, which agent it gets."""

import pytest

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment, EndReason, Outcome, Word
from backend.common.limits import Limits
from tests.integration.desk import FAST, Desk

OWN, TOKEN = "for the agent's own room", "for the proposed room"
WEEK_MS = 7 * 24 * 3_600_000


def test_a_session_takes_the_room_of_the_warm_agent_as_its_id_and_inherits_its_token(desk: Desk) -> None:
    desk.agent("a", room="session_own", room_token=OWN, room_for_ms=60_000)
    assert desk.session("proposed", room_token=TOKEN).session_id == "session_own"
    assert desk.field("session:session_own", "room_token") == OWN
    assert not desk.client.exists("session:proposed")


def test_a_session_with_a_parked_agent_keeps_its_own_id_and_token(desk: Desk) -> None:
    desk.agent("a")
    arrival = desk.session("proposed", room_token=TOKEN)
    assert (arrival.session_id, arrival.state, arrival.agent_id) == ("proposed", "assigned", "a")
    assert desk.field("session:proposed", "room_token") == TOKEN


def test_a_session_that_waited_keeps_its_own_id_when_an_agent_with_a_room_comes(desk: Desk) -> None:
    desk.session("proposed", room_token=TOKEN)
    _, assignment = desk.agent("a", room="session_own", room_token=OWN, room_for_ms=60_000)
    assert assignment == Assignment(session_id="proposed", generation=1)
    assert desk.field("session:proposed", "room_token") == TOKEN


def test_a_warm_agent_whose_room_is_about_to_close_is_not_handed_out(desk: Desk) -> None:
    agent, _ = desk.agent("a", room="session_own", room_for_ms=0)
    assert desk.session().state == "waiting"
    assert desk.do(x.heartbeat(agent, None)).word is Word.STOP


def test_the_agent_last_proven_alive_is_claimed_first(desk: Desk) -> None:
    first, _ = desk.agent("first")
    desk.agent("second")
    desk.client.zadd(keys.POOL_READY, {"first": 1, "second": 2})  # both beat long ago, in this order
    desk.do(x.heartbeat(first, None))
    assert desk.session().agent_id == "first"


def test_sessions_are_served_in_the_order_in_which_they_came(desk: Desk) -> None:
    names = ["one", "two", "three"]
    for name in names:
        desk.session(name)
    served = [desk.agent(f"a{number}")[1] for number in range(4)]
    assert served == [*(Assignment(session_id=name, generation=1) for name in names), "warm"]


def test_the_fields_of_the_record_are_stored_and_the_prompt_is_kept_apart(desk: Desk) -> None:
    record = {"user_name": "Ada", "voice_id": "Ashley", "metadata": '{"a": 1}'}
    prompt = {"system_prompt": "You are kind.", "opening_line": "Hello!"}
    desk.session(record=record, prompt=prompt)
    stored = desk.client.hgetall("session:s")
    assert {name: stored[name] for name in record} == record
    assert desk.client.hgetall("session:s:prompt") == prompt
    assert not set(prompt) & set(stored)
    assert 0 < desk.client.pttl("session:s:prompt") <= 600_000 + WEEK_MS


@pytest.mark.parametrize("count", [0, 1, 100])
def test_a_record_may_have_any_number_of_fields_also_without_a_prompt(desk: Desk, count: int) -> None:
    record = {f"field_{number}": str(number) for number in range(count)}
    assert desk.session(record=record).outcome is Outcome.NEW
    stored = desk.client.hgetall("session:s")
    assert {name: value for name, value in stored.items() if name.startswith("field_")} == record
    assert not desk.client.exists("session:s:prompt")


def test_a_prompt_without_further_fields_is_kept(desk: Desk) -> None:
    desk.session(prompt={"opening_line": "Hello!"})
    assert desk.client.hgetall("session:s:prompt") == {"opening_line": "Hello!"}


def test_a_prompt_belongs_to_the_room_that_the_agent_brought(desk: Desk) -> None:
    desk.agent("a", room="session_own", room_for_ms=60_000)
    desk.session("proposed", prompt={"opening_line": "Hello!"})
    assert desk.client.hgetall("session:session_own:prompt") == {"opening_line": "Hello!"}


def test_a_session_is_listed_as_open_and_for_good(desk: Desk) -> None:
    desk.session()
    created_at_ms = desk.number("session:s", "created_at_ms")
    for key in (keys.SESSION_OPEN, keys.SESSION_ALL):
        assert desk.client.zrange(key, 0, -1, withscores=True) == [("s", created_at_ms)]


def test_the_same_key_gives_the_same_session_also_after_it_ended(desk: Desk) -> None:
    desk.session("s1", start_key="u:k", body_hash="b")
    desk.end("s1")
    again = desk.session("s2", start_key="u:k", body_hash="b")
    assert (again.outcome, again.session_id, again.state) == ("again", "s1", "ended")
    assert desk.session("s3", start_key="u:k", body_hash="other").outcome is Outcome.CONFLICT
    assert desk.client.zcard(keys.SESSION_OPEN) == 0


def test_the_same_key_takes_no_second_agent_and_no_second_place(desk: Desk) -> None:
    desk.agent("a")
    desk.agent("b")
    first = desk.session("s1", start_key="u:k", body_hash="b")
    again = desk.session("s2", start_key="u:k", body_hash="b", fleet_ceiling=1, user_ceiling=1)
    assert (again.session_id, again.agent_id) == (first.session_id, first.agent_id)
    assert desk.client.zcard(keys.POOL_READY) == 1


@pytest.mark.parametrize("is_settled", [False, True])
def test_a_start_key_is_kept_as_long_as_its_session(desk: Desk, is_settled: bool) -> None:
    desk.session(start_key="u:k", body_hash="b")
    desk.end()
    if is_settled:
        desk.client.pexpire("start:u:k", 1_000)  # the session lay in the outbox for nearly a week
        desk.do(x.session_settled("s"))
    assert desk.client.pttl("start:u:k") >= desk.client.pttl("session:s") - 1_000


def test_a_refused_start_may_succeed_later_with_the_same_key(desk: Desk) -> None:
    assert desk.session("s1", start_key="u:k", body_hash="b", fleet_ceiling=0).full == "fleet"
    assert desk.session("s1", start_key="u:k", body_hash="b").outcome is Outcome.NEW


@pytest.mark.parametrize("ceiling", ["fleet", "user"])
def test_what_is_full_refuses_and_an_end_makes_room(desk: Desk, ceiling: str) -> None:
    one = {f"{ceiling}_ceiling": 1}
    desk.session("s1", **one)
    refused = desk.session("s2", **one)
    assert (refused.outcome, refused.full) == ("refused", ceiling)
    assert not desk.client.exists("session:s2")
    desk.end("s1")
    assert desk.session("s2", **one).outcome is Outcome.NEW


def test_the_ceiling_of_one_user_leaves_others_alone(desk: Desk) -> None:
    desk.session("s1", user_ceiling=1)
    assert desk.session("s2", user_id="v", user_ceiling=1).outcome is Outcome.NEW


def test_a_line_that_is_too_old_refuses_and_a_served_head_opens_it(desk: Desk) -> None:
    desk.session("s1")
    seconds_ago = (desk.valkey.now_ms() - desk.limits.line_age - 1) * 1_000
    desk.client.zadd(keys.SESSION_WAITING, {"s1": seconds_ago})
    assert desk.session("s2").full == "line_age"
    desk.agent("a")
    assert desk.session("s2").outcome is Outcome.NEW


def test_the_line_closes_before_those_in_it_time_out() -> None:
    limits = Limits.waiting_at_most(30)
    assert (limits.start, limits.line_age) == (30_000, 25_000)


def test_a_start_that_was_answered_503_does_not_happen_when_a_frozen_redis_thaws(desk: Desk) -> None:
    desk.agent("a")
    late = desk.session(not_after_ms=desk.valkey.now_ms() - 1)
    assert (late.outcome, late.full) == ("refused", "late")
    assert desk.client.zcard(keys.SESSION_OPEN) == 0
    assert desk.client.zcard(keys.POOL_READY) == 1
    assert desk.session(not_after_ms=desk.valkey.now_ms() + 10_000).outcome is Outcome.NEW


def test_order_is_kept_when_the_clock_goes_back(desk: Desk) -> None:
    desk.session("first")
    ahead = (desk.valkey.now_ms() + 10_000) * 1_000
    desk.client.zadd(keys.SESSION_WAITING, {"first": ahead})  # as if it came before the clock was set back
    desk.session("second")
    assert desk.client.zrange(keys.SESSION_WAITING, 0, -1) == ["first", "second"]


def test_a_new_session_has_a_deadline_for_waiting_and_one_for_its_whole_life(desk: Desk) -> None:
    desk.session(longest_ms=1_000)
    created_at_ms = desk.number("session:s", "created_at_ms")
    assert desk.due("waiting:s") == created_at_ms + FAST.start
    assert desk.due("limit:s") == created_at_ms + FAST.start + 1_000 + FAST.limit_margin


def test_a_wait_that_is_too_long_ends_unbilled(desk: Desk) -> None:
    desk.session()
    desk.sweep_until(lambda _: desk.field("session:s", "state") == "ended")
    end = desk.do(x.end_session("s", EndReason.CLIENT_END))
    assert end
    assert (end.is_first, end.billed_ms) == (False, 0)
    assert (desk.field("session:s", "end_reason"), desk.field("session:s", "ended_by")) == ("start_timeout", "platform")


def test_a_refill_that_runs_twice_spawns_once(desk: Desk) -> None:
    desk.host()
    first, second = desk.reserve(target=3), desk.reserve(target=3, base="h_2")
    assert (first, second) == (["h_1_1", "h_1_2", "h_1_3"], [])


def test_a_refill_counts_who_waits_and_spawns_no_more_than_it_may_at_once(desk: Desk) -> None:
    desk.host()
    desk.session("s1")
    desk.session("s2")
    assert desk.do(x.reserve_spawns(target=1, most=2, base="h_1")).missing == 1
    assert desk.reserve(base="h_2") == ["h_2_1"]
    assert desk.do(x.reserve_spawns(target=1, most=2, base="h_3")).missing == 0


def test_the_ceiling_of_a_host_counts_starting_warm_busy_and_stopping_agents(desk: Desk) -> None:
    desk.live()
    desk.end()  # 'a' is stopping
    desk.agent("b")
    desk.host(capacity=4)
    assert len(desk.reserve(target=9)) == 2
    assert desk.reserve(target=9, base="h_2") == []


def test_a_spawn_command_that_comes_after_its_reservation_lapsed_starts_nothing(desk: Desk) -> None:
    desk.host(capacity=1)
    (agent_id,) = desk.reserve()
    desk.sweep_until(lambda _: desk.client.scard("host:h:agents") == 0)
    assert desk.do(x.agent_arrives(Agent(id=agent_id, nonce="late", host_id="h"))) == "stale"


def test_two_processes_from_one_spawn_command_the_second_goes(desk: Desk) -> None:
    desk.host(capacity=1)
    (agent_id,) = desk.reserve()
    assert desk.do(x.agent_arrives(Agent(id=agent_id, nonce="first", host_id="h"))) == "warm"
    assert desk.do(x.agent_arrives(Agent(id=agent_id, nonce="second", host_id="h"))) == "stale"
    assert desk.do(x.agent_arrives(Agent(id=agent_id, nonce="first", host_id="h"))) == "warm"


def test_an_agent_that_died_before_it_arrived_gives_its_slot_back(desk: Desk) -> None:
    desk.host(capacity=1)
    (agent_id,) = desk.reserve()
    assert desk.do(x.agent_exited(Agent(id=agent_id, nonce="n", host_id="h"), exit_code=1)).is_first
    assert len(desk.reserve(base="h_2")) == 1
