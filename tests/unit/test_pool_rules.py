"""How many agents are wanted, and what who is refused is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.orchestrator import pool
from backend.orchestrator.errors import FullError, UnavailableError

number = st.integers(0, 1_000)


@pytest.mark.parametrize(
    ("target", "waiting", "warm", "starting", "missing"),
    [(3, 0, 0, 0, 3), (3, 0, 3, 0, 0), (3, 0, 1, 2, 0), (3, 5, 0, 4, 4), (0, 2, 0, 0, 2), (3, 0, 9, 0, 0)],
)
def test_an_agent_is_missing_for_each_who_waits_and_each_that_is_wanted_warm(
    target: int, waiting: int, warm: int, starting: int, missing: int
) -> None:
    assert pool.missing(target=target, waiting=waiting, warm=warm, starting=starting) == missing


@given(target=number, waiting=number, warm=number, starting=number)
def test_what_is_started_is_never_more_than_is_missing(target: int, waiting: int, warm: int, starting: int) -> None:
    missing = pool.missing(target=target, waiting=waiting, warm=warm, starting=starting)
    assert missing >= 0
    assert warm + starting + missing >= target + waiting
    assert pool.missing(target=target, waiting=waiting, warm=warm, starting=starting + missing) == 0


@pytest.mark.parametrize(("cores", "starting", "at_once"), [(1, 0, 2), (2, 0, 4), (2, 3, 1), (2, 4, 0), (2, 9, 0)])
def test_two_agents_start_on_a_core_at_once(cores: int, starting: int, at_once: int) -> None:
    assert pool.at_once(cores, starting) == at_once


def test_the_pool_grows_with_the_hosts() -> None:
    assert [pool.wanted_warm(3, hosts) for hosts in (0, 1, 4)] == [0, 3, 12]


def test_those_who_were_refused_together_do_not_come_back_together() -> None:
    drawn = {pool.retry_after_seconds() for _ in range(500)}
    assert drawn == set(range(2, 11))


@pytest.mark.parametrize(
    ("full", "error", "status", "words"),
    [
        ("fleet", FullError, 429, "waiting line is full"),
        ("user", FullError, 429, "MAX_SESSIONS_PER_USER"),
        ("line_age", FullError, 429, "moves too slowly"),
        ("late", UnavailableError, 503, "too late"),
    ],
)
def test_a_refusal_says_what_was_full_and_when_to_come_again(
    full: str, error: type[Exception], status: int, words: str
) -> None:
    refused = pool.refusal(full)
    assert type(refused) is error
    assert refused.status == status
    assert words in str(refused)
    assert refused.retry_after_seconds in range(2, 11)
