"""The table of the matrix in docs/reliability.md: rows that were not played again stay as they are."""

import re
import signal
from collections.abc import Iterable

from tests.benchmarks.documents import DOCS, Part, table
from tests.chaos.cell import Result
from tests.chaos.parts import PARTS, SIGNALS

PART = Part(page=DOCS / "reliability.md", name="chaos", command="make chaos")
HEAD = (
    "part",
    "signal",
    "live calls lost",
    "longest silence of a live call, s",
    "other sessions lost",
    "duplicates",
    "orphans, zombies",
    "rooms",
    "keys",
    "bill off by, s",
    "new call heard after, s",
    "slowest refusal, s",
)


def row(result: Result) -> list[str]:
    """One cell as a row."""
    return [
        result.part,
        f"{result.signal}, 20 s" if result.signal == signal.SIGSTOP.name else result.signal,
        f"{result.live_lost} of {result.live}",
        f"{result.silence:.1f}",
        f"{result.others_lost} of {result.others}",
        str(len(result.doubles)),
        str(len(result.strays)),
        str(len(result.rooms)),
        str(len(result.keys)),
        f"{result.bill_off:.1f}",
        "never" if result.new_start < 0 else f"{result.new_start:.1f}",
        f"{result.slowest_refusal:.1f}" if result.slowest_refusal else "none",
    ]


def write(results: Iterable[Result]) -> None:
    """Put the rows into the page."""
    PART.write(merged(PART.read(), [row(result) for result in results]))


def merged(old: str, rows: Iterable[list[str]]) -> str:
    """The table with these rows in place of the ones of the same part and signal."""
    known = {
        _key(cells): cells for cells in map(_cells, re.findall(r"^\| .+ \|$", old, re.MULTILINE)) if len(cells) > 1
    }
    known |= {_key(cells): cells for cells in rows}
    order = [(part, number.name) for part in PARTS for number in SIGNALS]
    return "\n".join(table(HEAD, [known[key] for key in order if key in known]))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _key(cells: list[str]) -> tuple[str, str]:
    return cells[0], cells[1].partition(",")[0]
