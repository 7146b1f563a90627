"""Ids, times and figures of one session."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.common.contract import End
from backend.orchestrator import session
from backend.orchestrator.schemas import StartRequest
from backend.orchestrator.views import end_view, session_view

MADE = {"state": "ended", "created_at_ms": "1000", "ended_at_ms": "90000"}


def test_ids_are_distinct_and_are_session_ids() -> None:
    ids = {session.new_session_id(1_762_018_728_198) for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(session.is_session_id(name) for name in ids)
    assert len({session.new_caller_identity() for _ in range(1_000)}) == 1_000


@pytest.mark.parametrize(
    "name",
    [
        "",
        "open",
        "waiting",
        "session_1_0123456789abcdef:prompt",
        "session_1_0123456789abcdef\n",
        "session_1_0123456789ABCDEF",
        "session_\u0661_0123456789abcdef",
        "session__0123456789abcdef",
        "xsession_1_0123456789abcdef",
    ],
)
def test_a_key_of_ours_or_a_near_miss_is_no_session_id(name: str) -> None:
    assert not session.is_session_id(name)


@pytest.mark.parametrize(
    ("billed_ms", "seconds", "minutes"),
    [(0, 0, 0), (999, 0, 0), (1_000, 1, 1), (60_000, 60, 1), (60_999, 60, 1), (61_000, 61, 2), (125_000, 125, 3)],
)
def test_seconds_are_rounded_down_and_minutes_up_from_the_seconds(billed_ms: int, seconds: int, minutes: int) -> None:
    assert session.billed_seconds(billed_ms) == seconds
    assert session.billed_minutes(seconds) == minutes


@pytest.mark.parametrize(
    ("fields", "now_ms", "talked_ms"),
    [
        ({"state": "waiting"}, 50_000, None),
        ({"state": "assigned", "started_at_ms": ""}, 50_000, None),
        (MADE, 99_000, 0),
        ({"state": "live", "started_at_ms": "10000"}, 50_000, 40_000),
        ({"state": "live", "started_at_ms": "10000", "silent_ms": "5000"}, 50_000, 35_000),
        ({"state": "waiting", "started_at_ms": "10000", "silent_since_ms": "30000"}, 50_000, 20_000),
        (MADE | {"started_at_ms": "10000"}, 999_000, 80_000),
        (MADE | {"started_at_ms": "10000", "silent_ms": "500"}, 999_000, 79_500),
        (MADE | {"started_at_ms": "95000"}, 999_000, 0),
        ({"state": "live", "started_at_ms": "60000"}, 50_000, 0),
    ],
    ids=[
        "waits",
        "assigned",
        "never heard",
        "live",
        "was silent",
        "is silent",
        "ended",
        "both",
        "clock back",
        "future",
    ],
)
def test_what_was_talked_is_from_the_first_word_heard_to_the_end_without_silence(
    fields: dict[str, str], now_ms: int, talked_ms: int | None
) -> None:
    assert session.talked_ms(fields, now_ms) == talked_ms


@given(
    started=st.one_of(st.none(), st.integers(1, 10**7)),
    ended=st.integers(1, 10**7),
    silent=st.integers(0, 10**6),
    later=st.integers(0, 10**7),
)
def test_the_end_and_every_later_look_show_the_same_figures(
    started: int | None, ended: int, silent: int, later: int
) -> None:
    end = End(is_first=True, started_at_ms=started, ended_at_ms=ended, silent_ms=silent)
    record = {"state": "ended", "created_at_ms": "1", "ended_at_ms": str(ended), "silent_ms": str(silent)}
    record |= {"started_at_ms": str(started)} if started else {}
    told, shown = end_view("s", end).details, session_view("s", record, ended + later)
    assert (told.duration_seconds, told.duration_minutes) == (shown.duration_seconds, shown.duration_minutes)
    assert told.duration_seconds >= 0
    assert told.duration_minutes * 60 - told.duration_seconds in range(60)


@pytest.mark.parametrize(("asked", "longest_ms"), [(None, 60_000), (1, 1_000), (60, 60_000)])
def test_a_session_lasts_as_long_as_is_asked(asked: int | None, longest_ms: int) -> None:
    assert session.longest_ms(asked, 60_000) == longest_ms


def test_a_session_does_not_last_longer_than_the_limit_in_milliseconds_allows() -> None:
    with pytest.raises(ValueError, match=r"at most 60 \(SESSION_TIMEOUT\)"):
        session.longest_ms(61, 60_000)


def test_bodies_are_the_same_when_they_ask_for_the_same() -> None:
    def hashed(**fields: object) -> str:
        return session.body_hash(StartRequest.model_validate({"userName": "Ann"} | fields).model_dump())

    assert hashed(metadata={"a": 1, "b": 2}) == hashed(metadata={"b": 2, "a": 1}) == hashed(metadata={"a": 1, "b": 2})
    assert hashed(voiceId=None) == hashed()
    different = [hashed(), hashed(voiceId="x"), hashed(openingLine="x"), hashed(openingLine=""), hashed(userId="Ann")]
    assert len(set(different)) == len(different)


def test_start_keys_differ_by_scope_and_key_and_show_neither_colons_nor_the_key() -> None:
    made = [session.start_key(scope, key) for scope in ("", "a", "b") for key in ("k", "k2", "a:b", "😀")]
    assert len(set(made)) == len(made)
    assert all(name.count(":") == 1 and "k2" not in name for name in made)
    assert session.start_key("a", "k") == session.start_key("a", "k")
    assert session.start_key("a", None) != session.start_key("a", None)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, None),
        ("", None),
        (0, None),
        ("1762018728198", "2025-11-01T17:38:48.198Z"),
        (1_762_018_728_000, "2025-11-01T17:38:48.000Z"),
    ],
)
def test_times_are_iso_8601_in_utc_and_null_where_not_yet(ms: str | int | None, text: str | None) -> None:
    assert session.iso_time(ms) == text
