"""A webhook is taken once; events may come in any order, late, or for rooms that are not ours."""

import itertools

import pytest

from backend.common import exchange as x
from backend.common import keys
from tests.integration.desk import FAST, Desk

JOINED, LEFT, FINISHED = "participant_joined", "participant_left", "room_finished"


def tell(desk: Desk, event_id: str, event: str, **changes: str) -> str:
    known = {"sid": "", "session_id": "s", "room_sid": "RM_1"} | changes
    call = x.livekit_event(
        event_id,
        event=event,
        participant_sid=known["sid"],
        session_id=known["session_id"],
        room_sid=known["room_sid"],
        room_made_ms=int(known.get("made_ms", 0)),
    )
    return desk.do(call)


def test_an_event_is_taken_once(desk: Desk) -> None:
    desk.session()
    assert tell(desk, "e1", JOINED, sid="PA_1") == "taken"
    assert tell(desk, "e1", JOINED, sid="PA_1") == "again"
    assert 0 < desk.client.pttl(keys.livekit_event("e1")) <= FAST.event_ttl


def test_an_event_of_a_room_that_is_no_session_leaves_only_its_mark_and_its_count(desk: Desk) -> None:
    assert tell(desk, "e1", JOINED, sid="PA_1", session_id="foreign") == "unknown"
    assert set(desk.client.keys()) == {keys.livekit_event("e1"), keys.SWEEP, keys.FLEET_COUNTS}


@pytest.mark.parametrize("order", list(itertools.permutations([(JOINED, "PA_1"), (LEFT, "PA_1"), (JOINED, "PA_2")])))
def test_who_is_in_the_room_does_not_depend_on_the_order_of_events(
    desk: Desk, order: tuple[tuple[str, str], ...]
) -> None:
    desk.live()
    for number, (event, sid) in enumerate(order):
        assert tell(desk, f"e{number}", event, sid=sid) == "taken"
    assert desk.client.hgetall(keys.session_callers("s")) == {"PA_1": "left", "PA_2": "joined"}
    assert desk.client.pttl(keys.session_callers("s")) > 0
    assert desk.field("session:s", "state") == "live"


@pytest.mark.parametrize(("has_come", "reason"), [(True, "caller_left"), (False, "nobody_came")])
def test_a_session_that_waits_in_a_room_that_finished_has_lost_its_caller(
    desk: Desk, has_come: bool, reason: str
) -> None:
    desk.session()
    if has_come:
        tell(desk, "e1", JOINED, sid="PA_1")
        tell(desk, "e2", LEFT, sid="PA_1")
    assert tell(desk, "e3", FINISHED) == "ended"
    assert (desk.field("session:s", "end_reason"), desk.field("session:s", "ended_by")) == (reason, "caller")
    assert desk.client.zcard(keys.SESSION_WAITING) == 0


@pytest.mark.parametrize("state", ["assigned", "live"])
def test_a_session_with_an_agent_whose_room_finished_ends_as_room_lost(desk: Desk, state: str) -> None:
    agent, work = desk.live() if state == "live" else desk.assigned()
    assert tell(desk, "e1", FINISHED) == "ended"
    assert (desk.field("session:s", "end_reason"), desk.field("session:s", "ended_by")) == ("room_lost", "platform")
    assert desk.do(x.heartbeat(agent, work)).word == "stop"


def test_the_end_of_the_room_changes_nothing_about_a_session_that_ended(desk: Desk) -> None:
    desk.live()
    desk.end()
    ended_at = desk.field("session:s", "ended_at_ms")
    assert tell(desk, "e1", FINISHED) == "taken"
    assert (desk.field("session:s", "end_reason"), desk.field("session:s", "ended_at_ms")) == ("client_end", ended_at)


def test_an_event_that_nobody_asked_for_is_taken_and_changes_nothing(desk: Desk) -> None:
    desk.live()
    before = desk.client.hgetall("session:s")
    assert tell(desk, "e1", "track_published", sid="PA_1") == "taken"
    assert desk.client.hgetall("session:s") == before
    assert not desk.client.exists(keys.session_callers("s"))


def test_the_end_of_an_earlier_room_of_the_same_name_ends_nothing(desk: Desk) -> None:
    desk.session()
    tell(desk, "e1", JOINED, sid="PA_1", room_sid="RM_2")

    assert tell(desk, "e2", FINISHED, room_sid="RM_1") == "taken"
    assert tell(desk, "e3", FINISHED, room_sid="RM_2") == "ended"


def test_late_word_of_an_earlier_room_does_not_hide_the_end_of_the_newest(desk: Desk) -> None:
    desk.live()
    tell(desk, "e1", JOINED, sid="PA_2", room_sid="RM_2", made_ms="2000")
    tell(desk, "e2", LEFT, sid="PA_1", room_sid="RM_1", made_ms="1000")
    assert tell(desk, "e3", FINISHED, room_sid="RM_1", made_ms="1000") == "taken"
    assert tell(desk, "e4", FINISHED, room_sid="RM_2", made_ms="2000") == "ended"
