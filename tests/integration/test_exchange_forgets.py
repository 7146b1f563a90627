"""A Redis that restarted empty, or with what it knew earlier, learns from the agents what goes on."""

import pytest

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import REMEMBERED, Agent, Assignment, EndReason, Outcome, Word
from tests.integration.desk import FAST, Desk

FROM_LUA = {
    "user_id",
    "ticket",
    "created_at_ms",
    "started_at_ms",
    "longest_ms",
    "silent_ms",
    "room_token",
    "start_key",
    "start_body",
}
RECORD = {name: f"the {name}" for name in REMEMBERED if name not in FROM_LUA}
"""What the API adds to the record."""


def remembered(desk: Desk) -> dict[str, str]:
    """What an agent keeps of its session."""
    stored = desk.client.hgetall("session:s")
    return {name: stored[name] for name in REMEMBERED if name in stored}


def test_what_an_agent_remembers_comes_back_whole_to_a_redis_that_restarted_empty(desk: Desk) -> None:
    agent, _ = desk.agent(pid=4711)
    desk.session(record=RECORD, room_token="t" * 9, start_key="u:k", body_hash="b")
    work = Assignment(session_id="s", generation=1)
    desk.do(x.confirm_claim(agent, work))
    desk.do(x.begin_session(agent, work))
    before, limit = desk.client.hgetall("session:s"), desk.due("limit:s")
    kept = remembered(desk)
    assert sorted(kept) == sorted(REMEMBERED)

    desk.client.flushall()
    assert desk.do(x.heartbeat(agent, work)).word is Word.UNKNOWN
    assert desk.do(x.agent_returns(agent, work, remembered=kept))
    assert desk.do(x.heartbeat(agent, work)).word is Word.KEEP

    after = desk.client.hgetall("session:s")
    gone = {name for name in before if after.get(name) != before[name]}
    assert gone == {"assigned_at_ms"}
    assert desk.due("limit:s") == limit
    assert desk.client.get("agent:s:pid") == "4711"
    assert desk.client.zscore(keys.SESSION_OPEN, "s") == desk.client.zscore(keys.SESSION_ALL, "s")
    assert desk.client.smembers(keys.user_sessions("u")) == {"s"}
    again = desk.session("s2", start_key="u:k", body_hash="b")
    assert (again.outcome, again.session_id) == (Outcome.AGAIN, "s")
    assert desk.client.pttl("session:s") > FAST.unsettled_ttl


def test_a_call_that_came_back_ends_with_the_start_it_had(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.client.flushall()
    desk.do(x.agent_returns(agent, work, remembered=kept))
    end = desk.do(x.end_session("s", EndReason.GOODBYE, generation=1))
    assert end
    assert end.started_at_ms == int(kept["started_at_ms"])


def test_a_call_that_came_back_before_it_began_has_a_limit_as_if_it_had_waited(desk: Desk) -> None:
    agent, work = desk.assigned()
    desk.do(x.confirm_claim(agent, work))
    kept, limit = remembered(desk), desk.due("limit:s")
    desk.client.flushall()
    assert desk.do(x.agent_returns(agent, work, remembered=kept))
    assert (desk.field("session:s", "state"), desk.due("limit:s")) == ("assigned", limit)
    assert desk.do(x.begin_session(agent, work))


def test_a_call_that_came_back_can_be_taken_over(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.client.flushall()
    desk.do(x.agent_returns(agent, work, remembered=kept))
    desk.session("later")
    desk.do(x.agent_exited(agent, exit_code=-9))
    assert desk.agent("b")[1] == Assignment(session_id="s", generation=2)


def test_an_agent_that_returned_takes_its_slot_of_the_room_that_its_host_has(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.client.flushall()
    desk.host(capacity=10)
    desk.do(x.agent_returns(agent, work, remembered=kept))
    assert desk.client.zscore(keys.POOL_PLACES, "h") == 9


def test_an_agent_may_return_twice(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.client.flushall()
    assert desk.do(x.agent_returns(agent, work, remembered=kept))
    assert desk.do(x.agent_returns(agent, work, remembered=kept)), "the answer may have been lost"
    assert desk.do(x.heartbeat(agent, work)).word is Word.KEEP


@pytest.mark.parametrize("missing", ["all", "user_id", "ticket", "created_at_ms", "longest_ms"])
def test_an_agent_that_does_not_remember_enough_must_exit_and_leaves_no_half_session(desk: Desk, missing: str) -> None:
    agent, work = desk.live()
    kept = {} if missing == "all" else {n: v for n, v in remembered(desk).items() if n != missing}
    desk.client.flushall()
    assert not desk.do(x.agent_returns(agent, work, remembered=kept))
    assert not desk.client.exists("session:s")
    assert desk.do(x.heartbeat(agent, work)).word is Word.STOP


def test_a_redis_of_a_moment_ago_learns_that_the_call_began(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.client.flushall()
    desk.agent("a")  # the file ends before the claim was confirmed, and before the agent was claimed
    desk.session()
    desk.client.hset("agent:a", "generation", "0")
    assert desk.do(x.heartbeat(agent, work)).word is Word.UNKNOWN
    assert desk.do(x.agent_returns(agent, work, remembered=kept))
    assert (desk.field("session:s", "state"), desk.field("session:s", "started_at_ms")) == (
        "live",
        kept["started_at_ms"],
    )


def test_an_older_silence_ends_when_the_agent_returns(desk: Desk) -> None:
    agent, work = desk.live()
    desk.client.hset("session:s", "silent_since_ms", desk.valkey.now_ms() - 1_000)
    desk.client.delete("agent:a")
    assert desk.do(x.agent_returns(agent, work, remembered={}))
    assert desk.field("session:s", "silent_since_ms") == ""
    assert 1_000 <= desk.number("session:s", "silent_ms") < 2_000


def test_an_agent_given_a_second_session_by_an_older_redis_keeps_its_first(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.client.flushall()
    desk.agent("a")  # what an append-only file of one second ago says: warm
    desk.session("other")
    assert desk.do(x.agent_returns(agent, work, remembered=kept))
    assert desk.field("session:other", "state") == "waiting"
    assert desk.agent("b")[1] == Assignment(session_id="other", generation=2)


def test_an_agent_that_an_older_redis_thinks_warm_is_not_handed_out_once_it_returned(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.client.flushall()
    desk.agent("a")
    assert desk.do(x.heartbeat(agent, work)).word is Word.UNKNOWN
    assert desk.do(x.agent_returns(agent, work, remembered=kept))
    assert desk.session("other").state == "waiting"
    assert desk.do(x.heartbeat(agent, work)).word is Word.KEEP


def test_a_session_that_an_older_redis_has_in_the_line_leaves_it_when_its_agent_returns(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.client.flushall()
    desk.session()
    assert desk.do(x.agent_returns(agent, work, remembered=kept))
    assert desk.due("waiting:s") == 0
    assert desk.agent("b")[1] == "warm"


def test_an_agent_that_returns_to_a_session_which_has_a_successor_must_exit(desk: Desk) -> None:
    agent, work = desk.live()
    desk.do(x.agent_exited(agent, exit_code=-9))
    desk.client.delete("agent:a")  # its record is gone, and so is what would have told it to stop
    assert not desk.do(x.agent_returns(agent, work, remembered={}))
    assert desk.agent("b")[1] == Assignment(session_id="s", generation=2)


def test_an_agent_that_returns_to_an_ended_session_must_exit(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.end()
    desk.client.delete("agent:a")
    assert not desk.do(x.agent_returns(agent, work, remembered=kept))
    assert desk.field("session:s", "state") == "ended"
    assert desk.client.zcard(keys.SESSION_OPEN) == 0


def test_of_two_agents_that_return_to_one_session_the_first_keeps_it(desk: Desk) -> None:
    agent, work = desk.live()
    kept = remembered(desk)
    desk.client.flushall()
    assert desk.do(x.agent_returns(agent, work, remembered=kept))
    other = Agent(id="b", nonce="nonce-b", host_id="h")
    assert not desk.do(x.agent_returns(other, work, remembered=kept))
    assert desk.field("session:s", "agent_id") == "a"


def test_another_process_cannot_return_under_the_same_id(desk: Desk) -> None:
    _, work = desk.live()
    stranger = Agent(id="a", nonce="other", host_id="h")
    assert not desk.do(x.agent_returns(stranger, work, remembered=remembered(desk)))
    assert desk.field("agent:a", "nonce") == "nonce-a"


def test_a_heartbeat_for_a_session_that_redis_lost_makes_no_record_of_it(desk: Desk) -> None:
    agent, work = desk.live()
    desk.client.delete(keys.session("s"))

    assert desk.do(x.heartbeat(agent, work)).word is Word.UNKNOWN
    assert not desk.client.exists(keys.session("s"))
