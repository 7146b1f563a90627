"""How an agent comes to a session: confirm, begin, heartbeat."""

import json

import pytest

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment, EndReason, Progress, Word
from tests.integration.desk import FAST, Desk


def test_only_the_claimed_process_may_confirm_and_only_at_its_generation(desk: Desk) -> None:
    agent, work = desk.assigned()
    stranger = Agent(id="a", nonce="another process", host_id="h")
    assert not desk.do(x.confirm_claim(stranger, work))
    assert not desk.do(x.confirm_claim(agent, Assignment(session_id="s", generation=2)))
    assert not desk.do(x.confirm_claim(agent, Assignment(session_id="another", generation=1)))
    assert desk.do(x.confirm_claim(agent, work))
    assert desk.do(x.confirm_claim(agent, work)), "the answer may have been lost"


def test_a_confirmed_session_knows_where_its_agent_runs(desk: Desk) -> None:
    agent, _ = desk.agent(pid=4711)
    work = Assignment(session_id=desk.session().session_id, generation=1)
    assert desk.field("session:s", "agent_pid") == ""
    desk.do(x.confirm_claim(agent, work))
    assert (desk.field("session:s", "host_id"), desk.field("session:s", "agent_pid")) == ("h", "4711")
    assert desk.client.get("agent:s:pid") == "4711"
    assert desk.due("claim:a") == 0


def test_an_unconfirmed_claim_goes_to_the_next_agent_and_the_first_may_not_speak(desk: Desk) -> None:
    first, work = desk.assigned()
    assert desk.sweep_until(bool) == [first]
    assert desk.agent("b")[1] == Assignment(session_id="s", generation=2)
    assert not desk.do(x.confirm_claim(first, work))


def test_an_agent_may_not_confirm_what_ended_before_it_came(desk: Desk) -> None:
    agent, work = desk.assigned()
    desk.end()
    assert not desk.do(x.confirm_claim(agent, work))
    assert not desk.client.exists("agent:s:pid")


def test_two_leases_of_one_agent_that_lapse_together_cost_its_session_one_generation(desk: Desk) -> None:
    agent, _ = desk.assigned()
    assert desk.lapse("agent:a", "claim:a") == (agent,)
    assert desk.field("session:s", "generation") == "2"


def test_billed_time_starts_once_and_only_with_a_confirmed_agent(desk: Desk) -> None:
    agent, work = desk.assigned()
    assert desk.do(x.begin_session(agent, work)) is None
    desk.do(x.confirm_claim(agent, work))
    first = desk.do(x.begin_session(agent, work))
    again = desk.do(x.begin_session(agent, work))
    assert first
    assert again
    assert again[0] == first[0] == desk.number("session:s", "started_at_ms")
    assert desk.field("session:s", "state") == "live"


def test_a_start_is_noted_for_billing_from_outside(desk: Desk) -> None:
    desk.live()
    started_at_ms = desk.number("session:s", "started_at_ms")
    assert desk.number("session:s", "conversationStartTime") == started_at_ms // 1000
    assert desk.field("session:s", "conversationDuration") == "0"
    assert desk.field("session:s", "conversationDurationMinutes") == "0"


def test_begin_says_how_long_the_call_may_last_also_to_a_successor(desk: Desk) -> None:
    agent, work = desk.assigned()
    desk.do(x.confirm_claim(agent, work))
    begun = desk.do(x.begin_session(agent, work))
    assert begun
    assert begun[1] == 600_000
    desk.client.hincrby("session:s", "started_at_ms", -60_000)  # a minute of talk
    desk.do(x.agent_exited(agent, exit_code=-9))
    successor, _ = desk.agent("b")
    second = Assignment(session_id="s", generation=2)
    desk.do(x.confirm_claim(successor, second))
    later = desk.do(x.begin_session(successor, second))
    assert later
    assert later[0] == begun[0] - 60_000
    assert 530_000 < later[1] <= 540_000


def test_a_call_over_its_time_has_nothing_left(desk: Desk) -> None:
    agent, work = desk.live()
    desk.client.hincrby("session:s", "started_at_ms", -700_000)
    begun = desk.do(x.begin_session(agent, work))
    assert begun
    assert begun[1] == 0
    assert desk.do(x.heartbeat(agent, work)).left_ms == 0


def test_redis_ends_a_call_only_some_time_after_its_agent_should_have(desk: Desk) -> None:
    desk.live()
    assert desk.due("limit:s") == desk.number("session:s", "started_at_ms") + 600_000 + FAST.limit_margin
    desk.lapse("limit:s")
    assert (desk.field("session:s", "end_reason"), desk.field("session:s", "ended_by")) == ("time_limit", "limit")


def test_a_stale_agent_cannot_begin(desk: Desk) -> None:
    first, work = desk.assigned()
    desk.do(x.confirm_claim(first, work))
    desk.do(x.agent_exited(first, exit_code=-9))
    desk.agent("b")
    assert desk.do(x.begin_session(first, work)) is None
    assert desk.field("session:s", "started_at_ms") == ""


def test_a_lost_bell_costs_one_heartbeat(desk: Desk) -> None:
    agent, work = desk.assigned()
    desk.client.delete("agent:a:inbox")
    assert desk.do(x.heartbeat(agent, None)).assignment == work


def test_the_inbox_says_what_to_do_in_order(desk: Desk) -> None:
    desk.live()
    desk.end()
    entries = [fields for _, fields in desk.client.xrange("agent:a:inbox")]
    assert entries == [
        {"command": "assign", "session_id": "s", "generation": "1", "text": ""},
        {"command": "end", "session_id": "s", "generation": "1", "text": "client_end"},
    ]
    assert desk.client.pttl("agent:a:inbox") > 0


@pytest.mark.parametrize("state", ["warm", "claimed", "busy"])
def test_a_heartbeat_has_no_time_left_before_the_call_began(desk: Desk, state: str) -> None:
    agent, _ = desk.agent()
    work = None
    if state != "warm":
        work = Assignment(session_id=desk.session().session_id, generation=1)
    if work and state == "busy":
        desk.do(x.confirm_claim(agent, work))
    verdict = desk.do(x.heartbeat(agent, work))
    assert (verdict.word, verdict.left_ms) == (Word.KEEP, None)


def test_a_heartbeat_carries_progress_and_writes_the_duration(desk: Desk) -> None:
    agent, work = desk.live()
    desk.client.hincrby("session:s", "started_at_ms", -61_500)
    verdict = desk.do(x.heartbeat(agent, work, Progress(frames=123, usage={"speech_ms": 4_000})))
    assert verdict.word is Word.KEEP
    assert verdict.left_ms is not None
    assert 530_000 < verdict.left_ms <= 538_500
    assert desk.field("agent:a", "frames") == "123"
    assert json.loads(desk.field("session:s", "usage")) == {"speech_ms": 4_000}
    assert 61 <= desk.number("session:s", "conversationDuration") < 70
    assert desk.field("session:s", "conversationDurationMinutes") == "2"


def test_a_heartbeat_renews_the_lease_and_whatever_must_live_as_long(desk: Desk) -> None:
    agent, work = desk.live()
    kept = ("agent:a", "agent:a:inbox", "agent:s:pid")
    for key in kept:
        desk.client.pexpire(key, 1_000)
    desk.client.zadd(keys.DEADLINES, {"agent:a": 1})
    desk.do(x.heartbeat(agent, work))
    assert desk.due("agent:a") > desk.valkey.now_ms()
    assert all(desk.client.pttl(key) > FAST.record_ttl - 10_000 for key in kept)


def test_a_heartbeat_of_another_process_with_the_same_id_renews_nothing(desk: Desk) -> None:
    desk.agent("a")
    lease = desk.due("agent:a")
    assert desk.do(x.heartbeat(Agent(id="a", nonce="other", host_id="h"), None)).word is Word.STOP
    assert desk.due("agent:a") == lease


def test_an_agent_whose_session_ended_is_told_to_stop(desk: Desk) -> None:
    agent, work = desk.live()
    desk.end()
    assert desk.do(x.heartbeat(agent, work)).word is Word.STOP


def test_an_agent_that_redis_does_not_know_is_told_so(desk: Desk) -> None:
    assert desk.do(x.heartbeat(Agent(id="a", nonce="n", host_id="h"), None)).word is Word.UNKNOWN


def test_an_arrival_is_repeated_with_the_same_answer(desk: Desk) -> None:
    agent, _ = desk.agent()
    assert desk.do(x.agent_arrives(agent)) == "warm"
    assert desk.client.zcard(keys.POOL_READY) == 1
    desk.session()
    assert desk.do(x.agent_arrives(agent)) == Assignment(session_id="s", generation=1)
    assert desk.client.zcard(keys.POOL_READY) == 0
    desk.do(x.end_session("s", EndReason.CLIENT_END))
    assert desk.do(x.agent_arrives(agent)) == "stale"
