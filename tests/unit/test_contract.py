"""What crosses a process border means the same on both sides."""

import dataclasses
import json
from pathlib import Path

import pytest

from backend.common import contract, exchange
from backend.common.contract import AgentState, Cause, End, EndReason, Order, Outcome, SessionState, Start, Word
from backend.common.limits import Limits

LUA = "\n".join(path.read_text() for path in exchange.LUA.glob("*.lua"))


@pytest.mark.parametrize(
    ("cause", "reasons"),
    [
        (Cause.CALLER, {"caller_left", "nobody_came", "silence"}),
        (Cause.CLIENT, {"client_end"}),
        (Cause.AGENT, {"goodbye"}),
        (Cause.LIMIT, {"time_limit"}),
        (
            Cause.PLATFORM,
            {"start_timeout", "agent_lost", "vendor_failed", "room_lost", "agent_fault", "shutdown"},
        ),
    ],
)
def test_every_end_reason_has_its_cause(cause: Cause, reasons: set[str]) -> None:
    assert {reason.value for reason in EndReason if reason.cause is cause} == reasons


@pytest.mark.parametrize(
    "word",
    [*SessionState, *AgentState, *Outcome, *Word, Order.ASSIGN, Order.END],
)
def test_lua_uses_the_words_of_the_contract(word: str) -> None:
    assert f"'{word}'" in LUA


@pytest.mark.parametrize(
    ("started_at_ms", "ended_at_ms", "silent_ms", "billed_ms"),
    [
        (1_000, 5_000, 0, 4_000),
        (1_000, 5_000, 1_500, 2_500),
        (None, 5_000, 0, 0),
        (5_000, 1_000, 0, 0),
        (1_000, 5_000, 9_000, 0),
    ],
)
def test_billed_time_is_what_was_heard_and_never_less_than_nothing(
    started_at_ms: int | None, ended_at_ms: int, silent_ms: int, billed_ms: int
) -> None:
    end = End(is_first=True, started_at_ms=started_at_ms, ended_at_ms=ended_at_ms, silent_ms=silent_ms)
    assert end.billed_ms == billed_ms


def test_what_is_agreed_on_cannot_be_changed_on_the_way() -> None:
    values = [kind for kind in vars(contract).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)]
    assert Start in values
    assert all(kind.__dataclass_params__.frozen for kind in values)  # type: ignore[attr-defined]  # typeshed lacks it


def test_states_and_reasons_are_plain_strings_in_json() -> None:
    assert json.dumps([SessionState.LIVE, EndReason.GOODBYE, Cause.AGENT]) == '["live", "goodbye", "agent"]'


def test_a_lease_outlives_a_heartbeat_and_a_gap_between_sweeps() -> None:
    """Otherwise a Redis that was frozen for less than a gap fails live calls over."""
    heartbeat_ms = 2_000
    limits = Limits()
    assert limits.lease > heartbeat_ms
    assert limits.lease >= heartbeat_ms + limits.sweep_gap
    assert limits.stop > 3_000 + 4_000, "goodbye, then the launcher's own patience"
    assert limits.tombstone_ttl > limits.stop


@pytest.mark.parametrize("seconds", [6, 30, 600])
def test_the_line_closes_before_those_in_it_are_given_up(seconds: int) -> None:
    limits = Limits.waiting_at_most(seconds)
    assert 0 < limits.line_age < limits.start == seconds * 1_000


@pytest.mark.parametrize("limits", [Limits(), Limits(lease=1)])
def test_other_limits_are_other_scripts(limits: Limits) -> None:
    """Two versions of a program share one Redis in a deployment: each runs the script that it brought."""
    same = exchange.Exchange(limits=limits).digests
    other = exchange.Exchange(limits=dataclasses.replace(limits, lease=limits.lease + 1)).digests
    assert exchange.Exchange(limits=limits).digests == same
    assert not set(same.values()) & set(other.values())


def test_the_package_brings_its_lua_files() -> None:
    assert {path.suffix for path in Path(exchange.LUA).iterdir()} == {".lua"}
