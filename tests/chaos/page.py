"""The table of the matrix in docs/reliability.md: rows that were not played again stay as they are."""

import re
import signal
from collections.abc import Iterable

from backend.local.setup import ROOT
from tests.chaos.cell import Result
from tests.chaos.parts import PARTS, SIGNALS

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- chaos: written by make chaos -->", "<!-- chaos: end -->"
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
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(rewritten(text, [row(result) for result in results]), encoding="utf-8")


def rewritten(text: str, rows: Iterable[list[str]]) -> str:
    """The page with these rows in place of the ones of the same part and signal."""
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    known = {
        _key(cells): cells for cells in map(_cells, re.findall(r"^\| .+ \|$", old, re.MULTILINE)) if len(cells) > 1
    }
    known |= {_key(cells): cells for cells in rows}
    order = [(part, number.name) for part in PARTS for number in SIGNALS]
    lines = [_line(HEAD), _line(["---"] * len(HEAD)), *(_line(known[key]) for key in order if key in known)]
    table = "\n".join(lines)
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _key(cells: list[str]) -> tuple[str, str]:
    return cells[0], cells[1].partition(",")[0]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
