"""The rules of the pool: between what its size may be, and what who is refused is told."""

import random

from backend.orchestrator.errors import FullError, GreenroomError, UnavailableError


def bounds(*, size: int, largest: int, hosts: int, capacity: int) -> tuple[int, int]:
    """Return the fewest and the most warm agents that may be wanted in a fleet of so many hosts.

    ``size`` and ``largest`` are those of one host; a pool is never larger than the fleet, and ``size`` wins.
    """
    least = size * hosts
    return least, max(least, min(largest * hosts, capacity))


def retry_after_seconds(most: int = 10) -> int:
    """Random, so that those who were refused together do not come back together."""
    return random.randint(2, most)  # noqa: S311  # spreads load, guards nothing


def refusal(full: str) -> GreenroomError:
    """Say why a start was refused, and when to come again."""
    again = retry_after_seconds()
    if full == "late":
        return UnavailableError("Redis answered too late: try again in a few seconds", retry_after_seconds=again)
    what = {
        "fleet": "Every agent is in a call and the waiting line is full",
        "user": "This user has as many sessions as MAX_SESSIONS_PER_USER allows: end one first",
        "line_age": "The waiting line moves too slowly for one more",
    }[full]
    return FullError(f"{what}. Try again in {again} seconds.", retry_after_seconds=again)
