"""Between what the pool's size may be, and what who is refused is told."""

import pytest

from backend.orchestrator import pool
from backend.orchestrator.errors import FullError, UnavailableError


@pytest.mark.parametrize(
    ("size", "largest", "hosts", "capacity", "bounds"),
    [
        (3, 16, 0, 0, (0, 0)),
        (3, 16, 1, 50, (3, 16)),
        (3, 16, 4, 200, (12, 64)),
        (3, 16, 1, 10, (3, 10)),  # no more than the fleet holds
        (3, 3, 2, 100, (6, 6)),  # a fixed pool
        (20, 16, 1, 50, (20, 20)),  # the size wins
        (3, 16, 1, 2, (3, 3)),  # as before there was a largest
    ],
)
def test_the_pool_grows_with_the_hosts_between_its_bounds(
    size: int, largest: int, hosts: int, capacity: int, bounds: tuple[int, int]
) -> None:
    assert pool.bounds(size=size, largest=largest, hosts=hosts, capacity=capacity) == bounds


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
