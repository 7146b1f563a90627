"""Whether a figure that was sampled over a run stays: the rules, without the product."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

SHARE = 0.1
"""What a figure may grow in the second half of a run, as a share of its median there."""
MOST_POINTS = 300
"""Of a series; all pairs of them are compared."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a figure went in the second half of a run."""

    median: float
    most: float
    grown: float
    """By how much its trend rose; negative when it fell."""
    may_grow: float

    @property
    def is_flat(self) -> bool:
        """Whether it stays."""
        return self.grown <= self.may_grow


def growth(points: Sequence[tuple[float, float]], *, slack: float) -> Growth:
    """Look at the second half of (seconds, figure); ``slack`` is what it may grow however small it is.

    The trend is Theil and Sen's: the median of the slopes between any two points, which a spike does not move.
    """
    began, ended = points[0][0], points[-1][0]
    half = [point for point in points if point[0] >= (began + ended) / 2][-MOST_POINTS:]
    slopes = [
        (after - before) / (late - early) for (early, before), (late, after) in combinations(half, 2) if late > early
    ]
    values = [value for _, value in half]
    median = statistics.median(values)
    grown = statistics.median(slopes) * (half[-1][0] - half[0][0]) if slopes else 0.0
    return Growth(median=median, most=max(values), grown=grown, may_grow=max(slack, SHARE * abs(median)))
