"""What the benchmark writes into docs/performance.md."""

from typing import Any

import pytest

from tests.benchmarks import bench, claims, figures

ABOUT = {
    "command": "make bench",
    "date": "2026-11-21",
    "cores": 2,
    "machine": "x86_64",
    "memory_gb": 8,
    "python": "3.11.7",
    "livekit_server": "1.13.5",
    "livekit": "1.2.0",
    "warm": 4,
}


def call(system: str, heard: float, **changes: Any) -> dict[str, Any]:
    times = {"answer": 10.0, "own_connect": 100.0, "heard": heard, "after_connect": 30.0, "end_to_gone": 80.0}
    return {"system": system, **times, **changes}


def cells(text: str, first: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] == first]


def test_a_lost_call_is_counted_and_is_in_no_median() -> None:
    rows = [call(figures.FIRST, 100), call(figures.FIRST, 300), {"system": figures.FIRST, "lost": "no sound"}]
    ((_, calls, lost, _, _, heard, *_),) = cells(
        figures.tables([{"about": ABOUT, "rows": {"latency": rows}}]), "in the room"
    )
    assert (calls, lost, heard) == ("3", "1", "200 / 300 / 300")


@pytest.mark.parametrize(("theirs", "met"), [(220.0, "yes"), (219.0, "**no**")])
def test_sooner_than_the_peer_is_told_by_the_medians_of_one_run(theirs: float, met: str) -> None:
    rows = {"latency": [call(figures.FIRST, 100), call(figures.PEER, theirs)]}
    (row,) = cells(figures.tables([{"about": ABOUT, "rows": rows}]), "first sound sooner than the peer's, median")
    assert row[-1] == met


def test_runs_are_drawn_as_one_in_which_a_later_section_replaces_an_earlier_one() -> None:
    whole = {"about": ABOUT, "rows": {"latency": [call(figures.FIRST, 100)], "poisson": [call(figures.FIRST, 200)]}}
    part = {
        "about": ABOUT | {"command": "make bench --only poisson", "date": "2026-11-22"},
        "rows": {"poisson": [call(figures.FIRST, 300)]},
    }
    assert figures.merged([whole, part]) == {
        "latency": [call(figures.FIRST, 100)],
        "poisson": [call(figures.FIRST, 300)],
    }
    text = figures.tables([whole, part])
    assert [row[5] for row in cells(text, figures.FIRST)] == ["100 / 100 / 100", "300 / 300 / 300"]
    assert "make bench  # 2026-11-21\nmake bench --only poisson  # 2026-11-22\n" in text
    assert text.count("4 warm agents in each system") == 1


def test_a_thousand_calls_cost_their_starts_and_what_live_agents_use() -> None:
    rows = [
        {"system": figures.FIRST, "idle": {"launcher": 0.04}, "start_seconds": 0.5, "live": [0.06, 0.08]},
        {"system": figures.FIRST, "idle": {"launcher": 0.04}, "start_seconds": 0.7, "live": [0.08, 0.10]},
    ]
    ((_, idle, _, start, live, thousand),) = cells(
        figures.tables([{"about": ABOUT, "rows": {"processor": rows}}]), figures.FIRST
    )
    assert (idle, start, live, thousand) == ("1.00", "0.60", "8.0", "5,400")


@pytest.mark.parametrize(
    ("arguments", "is_whole"),
    [([], True), (["--calls", "5"], True), (["--only", "poisson"], False), (["--systems", "parked"], False)],
)
def test_only_a_run_of_all_sections_and_systems_is_written_to_docs(arguments: list[str], is_whole: bool) -> None:
    assert bench.is_whole(bench.parse(arguments)) is is_whole


def test_ninety_five_percent_do_not_exceed_the_p95() -> None:
    assert figures.percentile([float(number) for number in range(1, 101)], 95) == 95
    assert figures.percentile([7.0], 95) == 7


def test_only_what_stands_between_the_markers_is_rewritten() -> None:
    page = f"before\n{figures.PART.begin}\nold\n{figures.PART.end}\nafter\n"
    written = figures.PART.rewritten(page, "new \\1")
    assert written == f"before\n{figures.PART.begin}\n\nnew \\1\n\n{figures.PART.end}\nafter\n"


def test_the_page_has_the_markers() -> None:
    page = figures.PART.page.read_text()
    assert page.count(figures.PART.begin) == page.count(figures.PART.end) == 1


def test_a_claims_target_is_held_against_the_worst_size_and_a_sweeps_against_each() -> None:
    seen = [("claims alone", 4.7), ("whole lives", 43.0), ("claims alone", 4.1), ("whole lives", 53.0)]
    measured = [claims.Measured(what=what, figure=figure, row=[]) for what, figure in seen]
    swept = [claims.Measured(what=what, figure=figure, row=[]) for what, figure in (("nothing", 0.004), ("all", 1.35))]
    assert [row[2:] for row in claims.targets(1000, measured, swept)] == [
        ["4.7 ms", "yes"],
        ["53 ms", "**no**"],
        ["0.004 s", "yes"],
        ["1.35 s", "**no**"],
    ]
