"""What a soak calls flat, and what it calls accounted for."""

import math
import random

import pytest

from tests.soak.account import Account
from tests.soak.calls import Placed
from tests.soak.flat import growth


def test_a_figure_that_rises_and_falls_by_chance_is_flat() -> None:
    draw = random.Random(4)  # noqa: S311  # a test's
    points = [(second, 100 + draw.gauss(0, 5)) for second in range(0, 600, 5)]
    assert growth(points, slack=0).is_flat


def test_a_figure_that_rises_all_the_time_is_not_flat_and_how_much_is_said() -> None:
    found = growth([(second, 100 + second / 10) for second in range(0, 600, 5)], slack=5)
    assert not found.is_flat
    assert math.isclose(found.grown, 29.5)


def test_what_a_figure_does_while_everything_warms_up_does_not_count() -> None:
    points = [(second, min(second, 200) + 50) for second in range(0, 600, 5)]
    assert growth(points, slack=0).grown == 0


def test_one_spike_is_no_growth() -> None:
    points = [(second, 1_000 if second == 590 else 10) for second in range(0, 600, 5)]
    assert growth(points, slack=0).is_flat


def account(*, held: float = 20.0, heard: float | None = None, **record: str) -> Account:
    """A call of 20 s that came out right, but for what a test is about."""
    silent = held - (held if heard is None else heard)
    sounds = [(0.0, 5.0), (5.0 + silent, held)]
    call = Placed(number=1, seconds=held, session_id="s", first_sound_at=0.0, ended_at=held, sounds=sounds)
    right = {"state": "ended", "end_reason": "client_end", "ended_by": "client", "settled_at_ms": "30000"}
    times = {"started_at_ms": "1000", "ended_at_ms": "21000", "silent_ms": "0", "generation": "1"}
    return Account(call=call, record=right | times | {"conversationDuration": "20"} | record)


def test_a_call_whose_figures_agree_is_accounted_for() -> None:
    assert account().faults() == []
    assert account(heard=16.0, generation="2", silent_ms="3500", conversationDuration="16").faults() == []


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (account(state="live"), "is live"),
        (account(settled_at_ms=""), "is not settled"),
        (account(end_reason=""), "has no end reason"),
        (account(conversationDuration="21"), "shows 21 s of 20000 ms"),
        (account(held=18.5), "is billed 1.5 s more than it lasted"),
        (account(held=21.5), "is billed 1.5 s less than it lasted"),
        (account(heard=16.0, generation="2"), "is billed 4.0 s in which nothing was heard"),
    ],
)
def test_a_call_whose_figures_do_not_agree_is_a_fault(given: Account, fault: str) -> None:
    assert given.faults() == [fault]
