"""Which host gives a caller its agent, and which one starts the next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.orchestrator.placement import Occupancy, load, room


def test_the_load_is_the_share_of_slots_that_are_in_calls() -> None:
    assert load(Occupancy(capacity=10, cores=2, slots=7, starting=1, warm=2)) == pytest.approx(0.4)


def test_a_host_without_a_warm_agent_gives_none() -> None:
    assert load(Occupancy(capacity=10, cores=2, slots=3, starting=3)) is None


def test_a_host_of_unknown_capacity_is_fuller_with_one_call_than_any_other() -> None:
    unknown = load(Occupancy(capacity=0, cores=0, slots=2, warm=1))
    full = load(Occupancy(capacity=50, cores=2, slots=50, warm=1))
    assert unknown is not None
    assert full is not None
    assert unknown > full


@pytest.mark.parametrize(
    ("slots", "starting", "free"), [(0, 0, 5), (4, 1, 1), (5, 0, None), (6, 0, None), (2, 2, None), (3, 3, None)]
)
def test_a_host_starts_one_agent_a_core_and_holds_no_more_than_it_may(
    slots: int, starting: int, free: int | None
) -> None:
    assert room(Occupancy(capacity=5, cores=2, slots=slots, starting=starting)) == free


@given(st.integers(0, 50), st.integers(0, 8), st.integers(0, 60), st.integers(0, 9))
def test_where_there_is_room_another_start_fits(capacity: int, cores: int, slots: int, starting: int) -> None:
    free = room(Occupancy(capacity=capacity, cores=cores, slots=slots, starting=starting))
    assert (free is not None) == (slots + 1 <= capacity and starting + 1 <= cores)
    assert free is None or free >= 1
