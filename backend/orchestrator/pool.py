"""The rules of the pool: how many agents are wanted, and what who is refused is told."""

import random

from backend.orchestrator.errors import FullError, GreenroomError, UnavailableError

SPAWNS_PER_CORE = 2
"""Agents that start at once on a core: more would starve the calls that run there."""


def wanted_warm(prewarm_pool_size: int, live_hosts: int) -> int:
    """Warm agents wanted in the fleet."""
    return prewarm_pool_size * live_hosts


def missing(*, target: int, waiting: int, warm: int, starting: int) -> int:
    """Agents to start now: one for each who waits, and the warm ones that are wanted."""
    return max(0, target + waiting - warm - starting)


def at_once(cores: int, starting: int) -> int:
    """How many more may start on a host that is starting some already."""
    return max(0, SPAWNS_PER_CORE * cores - starting)


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
