"""Webhooks may come in any order and more than once: what the session comes to is the same."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.common import exchange as x
from backend.common import keys
from tests.integration.desk import Desk

JOINED, LEFT, FINISHED = "participant_joined", "participant_left", "room_finished"
EARLIER, NEWEST = "RM_1", "RM_2"
MADE_MS = {EARLIER: 1_762_018_728_000, NEWEST: 1_762_018_790_000}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event as LiveKit sends it, perhaps several times."""

    event: str
    room: str
    sid: str = ""

    @property
    def id(self) -> str:
        """The same each time it is sent."""
        return f"EV_{self.event}_{self.room}_{self.sid}"


def life(room: str, visits: int) -> list[Event]:
    """Callers who come and go one after the other, as a reconnect is: the same caller with a SID of its own."""
    sids = [f"PA_{room}_{number}" for number in range(visits)]
    return [Event(event=event, room=room, sid=sid) for sid in sids for event in (JOINED, LEFT)]


@st.composite
def deliveries(draw: st.DrawFn) -> list[Event]:
    """Some of the events of two rooms of one name, some of them twice, in any order."""
    sent = [*life(EARLIER, draw(st.integers(0, 2))), *life(NEWEST, draw(st.integers(0, 2)))]
    sent += [Event(event=FINISHED, room=room) for room in (EARLIER, NEWEST) if draw(st.booleans())]
    kept = [event for event in sent if draw(st.integers(0, 9))]  # one in ten is lost
    again = draw(st.lists(st.sampled_from(kept), max_size=3)) if kept else []
    return draw(st.permutations([*kept, *again]))


def tell(desk: Desk, event: Event, session_id: str = "s") -> str:
    return desk.do(
        x.livekit_event(
            event.id,
            session_id=session_id,
            event=event.event,
            room_sid=event.room,
            room_made_ms=MADE_MS[event.room],
            participant_sid=event.sid,
        )
    )


def begin(desk: Desk, state: str) -> None:
    if state == "waiting":
        desk.session()
    else:
        desk.assigned() if state == "assigned" else desk.live()


def must_end(order: list[Event]) -> bool:
    """Whether the session's room was known to be gone at some moment: no newer one was known when it finished."""
    newest = [place for place, event in enumerate(order) if event.room == NEWEST and event.sid]
    known_from = min(newest, default=len(order))
    gone = [place for place, event in enumerate(order) if event.event == FINISHED]
    return any(order[place].room == NEWEST or place < known_from for place in gone)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("state", ["waiting", "assigned", "live"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=deliveries())
def test_the_state_is_right_after_any_order_of_events(desk: Desk, state: str, order: list[Event]) -> None:
    desk.client.flushall()
    desk.trust_sweeps()
    begin(desk, state)
    answers = [tell(desk, event) for event in order]

    callers = desk.client.hgetall(keys.session_callers("s"))
    here = {event.sid for event in order if event.event == JOINED}
    gone = {event.sid for event in order if event.event == LEFT}
    assert callers == {sid: "left" if sid in gone else "joined" for sid in here | gone}
    assert not callers or desk.client.pttl(keys.session_callers("s")) > 0

    assert answers.count("again") == len(order) - len(set(order))
    assert answers.count("ended") == must_end(order)
    assert desk.field("session:s", "state") == ("ended" if must_end(order) else state)
    if must_end(order):
        assert desk.field("session:s", "ended_by") == ("caller" if state == "waiting" else "platform")
    if any(event.room == NEWEST and event.sid for event in order):
        assert desk.field("session:s", "room_sid") == NEWEST


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=deliveries())
def test_events_of_an_unknown_room_leave_nothing_but_their_marks(desk: Desk, order: list[Event]) -> None:
    desk.client.flushall()
    desk.session()
    before = desk.client.hgetall("session:s")
    assert {tell(desk, event, "session_1_0123456789abcdef") for event in order} <= {"unknown", "again"}
    assert desk.client.hgetall("session:s") == before
    assert not [key for key in desk.client.scan_iter() if "0123456789abcdef" in key]
