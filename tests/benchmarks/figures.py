"""The tables and plots of runs, for docs/performance.md: only what stands between its markers is rewritten."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from tests.benchmarks.documents import DOCS, TARGET_HEAD, Part, at_most
from tests.benchmarks.sections import Row

PART = Part(page=DOCS / "performance.md", name="bench", command="make bench")
PEER = "livekit-agents"
FIRST = "in the room"
SOONER = 2.2
TALK_SECONDS = 60
"""Of the calls whose cost is told by the thousand."""

Results = dict[str, Any]
"""``about`` a run, and its ``rows`` by section."""


def merged(runs: Sequence[Results]) -> dict[str, list[Row]]:
    """The rows of all runs by section; where several have a section, those of the last one."""
    return {name: rows for run in runs for name, rows in run["rows"].items()}


def tables(runs: Sequence[Results]) -> str:
    """The whole part of the page, in Markdown."""
    rows = merged(runs)
    commands = "\n".join(f"{run['about']['command']}  # {run['about']['date']}" for run in runs)
    parts = [
        f"```\n{commands}\n```",
        "\n".join(dict.fromkeys(_machine(run["about"]) for run in runs)),
        _section("Against the targets", targets(rows), TARGET_HEAD),
    ]
    for name, title in _waits(rows):
        parts.append(_section(title, [_wait_row(*each) for each in _by_system(rows[name])], WAIT_HEAD))
    if "memory" in rows:
        parts.append(_section("Memory, MB", [_memory_row(row) for row in rows["memory"]], MEMORY_HEAD))
    if "processor" in rows:
        cells = [_processor_row(*each) for each in _by_system(rows["processor"])]
        parts.append(_section("Processor", cells, PROCESSOR_HEAD))
    if "hung" in rows:
        parts.append(_section("Frozen agents, seconds", [_hung_row(row) for row in rows["hung"]], HUNG_HEAD))
    return "\n\n".join(parts)


def _machine(about: dict[str, Any]) -> str:
    return (
        f"{about['cores']} cores ({about['machine']}), {about['memory_gb']} GB, Python {about['python']}, "
        f"LiveKit server {about['livekit_server']}, livekit {about['livekit']}, "
        f"{about['warm']} warm agents in each system."
    )


def write(runs: Sequence[Results]) -> None:
    """Rewrite this command's part of the page, and its plots."""
    from tests.benchmarks import plots  # noqa: PLC0415  # matplotlib, which only this command has

    images = "\n".join(f"![{text}]({name})" for name, text in plots.draw(merged(runs), DOCS).items())
    PART.write(f"{tables(runs)}\n\n{images}")


WAIT_HEAD = (
    "ms: median / p95 / worst",
    "calls",
    "lost",
    "answer",
    "own connect",
    "first sound",
    "after connect",
    "gone",
)
MEMORY_HEAD = ("", "tree of warm agents, PSS", "all programs, PSS", "own of a warm agent", "own of a live one")
PROCESSOR_HEAD = (
    "core-seconds",
    "idle: agents, % of a core each",
    "idle: all programs, %",
    "a start and its end",
    "a live agent, % of a core",
    f"1,000 calls of {TALK_SECONDS} s",
)
HUNG_HEAD = ("", "frozen in a call: gone", "caller hears again after", "frozen warm: gone", "pool full again")


def _waits(rows: dict[str, list[Row]]) -> list[tuple[str, str]]:
    titles = {
        "latency": "One call at a time",
        "poisson": "Callers who come as they like, at 80 % of what the machine bears",
    }
    titles |= {name: f"{name.split()[1]} callers at once, on a pool of 4" for name in rows if name.startswith("burst")}
    return [(name, title) for name, title in titles.items() if name in rows]


def _wait_row(system: str, rows: list[Row]) -> list[str]:
    found = [row for row in rows if "lost" not in row]
    spans = [
        spread(row.get(name) for row in found)
        for name in ("answer", "own_connect", "heard", "after_connect", "end_to_gone")
    ]
    return [system, str(len(rows)), str(len(rows) - len(found)), *spans]


def _memory_row(row: Row) -> list[str]:
    middle = [f"{statistics.median(row[name]):.1f}" if row[name] else "-" for name in ("warm_uss", "live_uss")]
    return [row["system"], f"{row['warm_tree_pss']:.0f}", f"{row['all_pss']:.0f}", *middle]


def _processor_row(system: str, rows: list[Row]) -> list[str]:
    idle, idle_all = _idle(rows[0])
    start = statistics.mean(row["start_seconds"] for row in rows)
    live = statistics.mean(share for row in rows for share in row["live"])
    thousand = 1000 * (start + TALK_SECONDS * live)
    return [system, f"{idle:.2f}", f"{idle_all:.1f}", f"{start:.2f}", f"{live * 100:.1f}", f"{thousand:,.0f}"]


def _idle(row: Row) -> tuple[float, float]:
    """Percent of a core: of one warm agent, with its share of its parent; of all programs."""
    agents = row["idle"].get("launcher", row["idle"].get("worker", 0.0))
    return agents * 100 / 4, sum(row["idle"].values()) * 100


def _hung_row(row: Row) -> list[str]:
    names = ("live_gone", "silent_seconds", "warm_gone", "replaced")
    return [row["system"], *(f"{row[name]:.1f}" if row.get(name) else "never" for name in names)]


def targets(rows: dict[str, list[Row]]) -> list[list[str]]:
    """Each target that this run has figures for: what was asked, what came, and whether that is enough."""
    calls = {name: [row for row in each if "lost" not in row] for name, each in _by_system(rows.get("latency", []))}
    lines = _wait_targets(calls[FIRST], calls.get(PEER, [])) if FIRST in calls else []
    if "burst 50" in rows:
        lost = sum("lost" in row for row in rows["burst 50"] if row["system"] == FIRST)
        lines.append(at_most("lost of a burst of 50", 0, lost, "calls"))
    for row in rows.get("memory", []):
        if row["system"] != PEER:
            lines.append(at_most(f"tree of 4 warm agents ({row['system']})", 250, row["warm_tree_pss"], "MB"))
    for name, each in _by_system(rows.get("processor", [])):
        if name != PEER:
            lines.append(at_most(f"a warm agent's idle time ({name})", 1, _idle(each[0])[0], "% of a core"))
            if fork_ms := [took for row in each for took in row.get("fork_ms", ())]:
                what = f"fork to warm beside 4 calls, median of {len(fork_ms)} ({name})"
                lines.append(at_most(what, 250, statistics.median(fork_ms), "ms"))
    return lines


def _wait_targets(ours: list[Row], theirs: list[Row]) -> list[list[str]]:
    lines = [
        at_most("first sound after the caller's own connect, median", 40, _median(ours, "after_connect"), "ms"),
        at_most("answer, p95", 15, percentile([row["answer"] for row in ours], 95), "ms"),
        at_most("end to process gone, p95", 1000, percentile([row["end_to_gone"] for row in ours], 95), "ms"),
    ]
    if theirs:
        times = _median(theirs, "heard") / _median(ours, "heard")
        verdict = "yes" if times >= SOONER else "**no**"
        lines.append(["first sound sooner than the peer's, median", f"at least {SOONER} x", f"{times:.2f} x", verdict])
    return lines


def spread(values: Iterable[float | None]) -> str:
    """Median, p95 and worst."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.median(known):.0f} / {percentile(known, 95):.0f} / {max(known):.0f}"


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _median(rows: list[Row], name: str) -> float:
    return float(statistics.median(row[name] for row in rows))


def _by_system(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    names = sorted({row["system"] for row in rows}, key=lambda name: (name == PEER, len(name), name))
    return [(name, [row for row in rows if row["system"] == name]) for name in names]


def _section(title: str, rows: list[list[str]], head: tuple[str, ...]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]
    return f"### {title}\n\n" + "\n".join(lines)
