"""How many agents should be warm: what follows from callers and starts."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.common.limits import Limits
from backend.orchestrator import demand
from backend.orchestrator.demand import Demand

LIMITS = Limits()
STARTED = Demand(start_ms=900.0, cores=2.0)
"""With the time until a refill looks: a refill lasts a second."""


def after_callers(*at_seconds: float, known: Demand = STARTED) -> Demand:
    for seconds in at_seconds:
        known = demand.came(known, 1_000_000 + seconds * 1000, LIMITS)
    return known


def wanted(known: Demand, at_seconds: float, *, least: int = 3, most: int = 100) -> int:
    now = demand.faded(known, 1_000_000 + at_seconds * 1000, LIMITS)
    return demand.target(now, LIMITS, least=least, most=most)


def poisson_at_least(number: int, mean: float) -> float:
    return 1 - sum(math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(number))


def test_without_callers_the_pool_is_as_small_as_it_may_be() -> None:
    assert wanted(Demand(), 0) == 3
    assert wanted(Demand(), 0, least=0) == 0


def test_a_burst_is_wanted_again_and_half_of_it_after_a_half_life() -> None:
    known = after_callers(*[0.0] * 40)
    minutes = LIMITS.peak_half_life / 60_000
    assert [wanted(known, 60 * minutes * waves) for waves in range(5)] == [40, 20, 10, 5, 3]


def test_callers_who_come_slower_than_agents_do_leave_hardly_more_than_one_to_replace() -> None:
    known = after_callers(*(number * 5.0 for number in range(50)))
    assert known.peak == pytest.approx(1.0, abs=0.01)


def test_of_a_stream_as_many_are_to_be_replaced_as_come_in_a_refill() -> None:
    known = after_callers(*(number * 0.1 for number in range(400)), known=Demand(start_ms=900.0, cores=50.0))
    assert known.replacing == pytest.approx(10 + 0.5, abs=0.1)


def test_a_burst_that_agents_come_too_slowly_for_is_remembered_at_its_deepest() -> None:
    known = after_callers(*(number * 0.25 for number in range(41)))  # four a second, two of which are replaced
    assert 1 + 40 * 0.5 < known.peak < 41 * 0.5 + 2
    assert after_callers(60.0, known=known).replacing == pytest.approx(1.0)


@given(st.floats(0, 500), st.floats(0, 60_000), st.floats(0, 60_000), st.floats(1, 64), st.floats(1, 10_000))
def test_what_is_replaced_in_two_steps_is_replaced_in_one(
    number: float, first: float, second: float, cores: float, refill: float
) -> None:
    between = demand.still_replacing(number, first, cores, refill)
    assert 0 <= between <= number
    in_two = demand.still_replacing(between, second, cores, refill)
    assert in_two == pytest.approx(demand.still_replacing(number, first + second, cores, refill), rel=1e-6, abs=1e-6)


def test_the_rate_of_a_steady_stream_is_found() -> None:
    draw = random.Random(1)  # noqa: S311  # a test's own dice
    at, known = 0.0, STARTED
    for _ in range(2_000):
        at += draw.expovariate(5.0)
        known = after_callers(at, known=known)
    rate = known.arrivals * math.log(2) * 1000 / LIMITS.rate_half_life
    assert rate == pytest.approx(5.0, rel=0.25)


@given(st.floats(0.001, 400))
def test_of_a_steady_stream_one_caller_in_a_hundred_waits_and_with_an_agent_less_more_do(mean: float) -> None:
    number = demand.for_rate(mean, 1_000)
    assert poisson_at_least(number, mean) <= demand.WAITING + 1e-9
    assert number == 0 or poisson_at_least(number - 1, mean) > demand.WAITING - 1e-9


def test_no_mean_is_too_large_to_count_with() -> None:
    found = [demand.for_rate(mean, 10**6) for mean in (499.0, 501.0, 5_000.0)]
    assert found == sorted(found)
    assert found[1] - found[0] <= 4, "the two ways to count meet"
    assert found[2] == pytest.approx(5_000 + 2.33 * math.sqrt(5_000), abs=2)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 50), st.integers(0, 500))
def test_the_target_stays_within_its_bounds(arrivals: float, peak: float, least: int, more: int) -> None:
    now = Demand(arrivals=arrivals, peak=peak, start_ms=500.0)
    assert least <= demand.target(now, LIMITS, least=least, most=least + more) <= least + more


@given(st.floats(0, 10_000), st.floats(0, 10_000))
def test_with_time_the_target_only_falls(earlier: float, later: float) -> None:
    known = after_callers(*[0.0] * 30)
    assert wanted(known, max(earlier, later)) <= wanted(known, min(earlier, later))


def test_a_lone_caller_is_forgotten_within_minutes() -> None:
    known = after_callers(0.0)
    assert wanted(known, 1, least=0) in (1, 2)
    assert wanted(known, 301, least=0) == 0


def test_slow_starts_want_more_agents() -> None:
    known = after_callers(*(number * 0.5 for number in range(400)))
    slow = Demand(**(vars(known) | {"start_ms": 5_000.0}))
    assert wanted(slow, 200) > wanted(known, 200) > 3


def test_starts_are_learnt_and_an_odd_one_hardly_counts() -> None:
    known = demand.took(Demand(), 300.0)
    assert known.start_ms == 300.0
    assert demand.took(known, 1_100.0).start_ms == 400.0


def test_a_clock_that_was_set_back_forgets_nothing() -> None:
    known = after_callers(*[0.0] * 10)
    assert demand.faded(known, known.at_ms - 60_000, LIMITS).arrivals == known.arrivals


def test_a_record_is_read_whatever_else_it_holds() -> None:
    assert demand.read({}) == Demand()
    assert demand.read({"peak": "2.5", "of_a_later_version": "x"}) == Demand(peak=2.5)
