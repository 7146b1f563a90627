"""The verdict on a run, and its table for docs/reliability.md."""

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.benchmarks.documents import DOCS, Part, machine, table
from tests.benchmarks.figures import percentile
from tests.soak.account import Account
from tests.soak.flat import Growth, growth

LEFT_SECONDS = 30.0
"""After the last call everything of it must be gone by then."""
PART = Part(page=DOCS / "reliability.md", name="soak", command="make soak")
HEAD = ("second half of the run", "median", "most", "grown", "may grow", "flat")
SLACK = {
    "descriptors of redis": 12.0,
    "descriptors of livekit": 12.0,
    "descriptors": 6.0,
    "RSS of livekit": 20.0,
    "RSS": 8.0,
    "PSS": 8.0,
    "keys without": 8.0,
    "keys in": 8.0,
    "for each": 2.0,
}
"""What a figure may grow in half a run whatever its size, by how its name begins or what is in it."""
COUNTED = ("orphans", "zombies")
"""Not judged by their trend: none may be left."""
LOADS = ("agents", "rooms", "PSS of all, MB", "logs for each ended call, KB")
"""They follow the calls that are under way, which come by chance, or those that flood; shown, and judged at the end."""


@dataclass(kw_only=True)
class Run:
    """What happened."""

    command: str
    minutes: float
    calls: Sequence[Account]
    refused: Sequence[str]
    unended: int
    """Calls that did not come to an end."""
    kills: Counter[str]
    agents: int
    misfits: Counter[str]
    """Agents that misbehaved, by what they did."""
    series: dict[str, list[tuple[float, float]]]
    left: Sequence[str] = field(default_factory=list)
    """What is left half a minute after the last call."""

    def growths(self) -> dict[str, Growth]:
        """Every figure that must stay."""
        names = [name for name, points in self.series.items() if len(points) > 3 and name not in COUNTED]
        return {name: growth(self.series[name], slack=_slack(name)) for name in sorted(names)}

    def reasons(self) -> list[str]:
        """Why this run is a failure; nothing when it is none."""
        found = [f"session {each.call.session_id} {fault}" for each in self.calls for fault in each.faults()]
        found += [f"session {each.call.session_id}: {each.call.failed}" for each in self.lost()]
        found += [f"{self.unended} calls did not come to an end"] if self.unended else []
        found += [
            f"{name} grew by {g.grown:.1f}" for name, g in self.growths().items() if _must_stay(name) and not g.is_flat
        ]
        return found + [f"left behind: {what}" for what in self.left]

    def lost(self) -> list[Account]:
        """Calls that ended otherwise than their caller meant, without having lost more agents than are replaced."""
        return [each for each in self.calls if each.call.failed and each.record.get("end_reason") != "agent_lost"]


def _slack(name: str) -> float:
    return next((slack for part, slack in SLACK.items() if part in name), 3.0)


def _must_stay(name: str) -> bool:
    return name not in LOADS


def summary(run: Run) -> list[str]:
    """What happened, in sentences."""
    reasons = Counter(f"`{each.record.get('end_reason', '?')}`" for each in run.calls)
    whole = [each for each in run.calls if not each.call.failed]
    exact = [each.over_seconds for each in whole if not each.lost_agents]
    dead = [each.dead_seconds_billed for each in whole if each.lost_agents and not each.is_mute]
    silences = [each.call.longest_silence for each in whole if each.lost_agents and not each.is_mute]
    lines = [
        f"{len(run.calls)} calls, {len(run.refused)} refused; {run.agents} agents, of them {_listed(run.misfits)}.",
        f"Killed: {_listed(run.kills)}.",
        f"Ended: {_listed(reasons)}. Agents lost in calls: {sum(each.lost_agents for each in run.calls)}.",
    ]
    if exact:
        lines.append(
            f"Billed minus held, {len(exact)} calls whose agent stayed: median {statistics.median(exact):+.2f} s, "
            f"from {min(exact):+.2f} to {max(exact):+.2f} s."
        )
    if dead:
        lines.append(
            f"{len(dead)} calls with a successor: longest silence median {statistics.median(silences):.1f} s, "
            f"p95 {percentile(silences, 95):.1f}, worst {max(silences):.1f}; "
            f"billed minus heard from {min(dead):+.2f} to {max(dead):+.2f} s."
        )
    most = {name: max((value for _, value in run.series[name]), default=0) for name in COUNTED}
    lines.append(
        f"At most {most['orphans']:.0f} orphans and {most['zombies']:.0f} zombies at any look; "
        f"left {LEFT_SECONDS:.0f} s after the last call: {len(run.left)}."
    )
    return lines


def section(run: Run) -> str:
    """The part of the page that the command writes."""
    rows = [
        (name, f"{g.median:.1f}", f"{g.most:.1f}", f"{g.grown:+.1f}", f"{g.may_grow:.1f}", _flat(name, g))
        for name, g in run.growths().items()
    ]
    reasons, load = run.reasons(), f"{os.getloadavg()[1]:.0f}"
    verdict = (
        "Nothing was lost, nothing grew, nothing was left." if not reasons else "**Not held:** " + "; ".join(reasons)
    )
    head = f"```\n{run.command}\n```\n\n{run.minutes:g} minutes, {machine()}, load average {load} at the end."
    return "\n\n".join((head, "\n".join(f"- {line}" for line in summary(run)), "\n".join(table(HEAD, rows)), verdict))


def write(run: Run) -> None:
    """Replace what stands between the markers of docs/reliability.md."""
    PART.write(section(run))


def _flat(name: str, growth: Growth) -> str:
    if not _must_stay(name):
        return "follows the calls"
    return "yes" if growth.is_flat else "**no**"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "none"
