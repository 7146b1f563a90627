"""What a measurement leaves in docs/: a table, the machine, a section or a marked part that the next run replaces."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


TARGET_HEAD = ("", "target", "measured", "met")


def at_most(what: str, limit: float, measured: float, unit: str) -> list[str]:
    """The line of a target under this head: what was asked, what came, and whether that is enough."""
    return [what, f"at most {limit:g} {unit}", f"{measured:.3g} {unit}", "yes" if measured <= limit else "**no**"]


def machine() -> str:
    """Say what it was measured on."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def write_section(name: str, title: str, lines: Sequence[str]) -> None:
    """Replace what stands under ``## title`` in a document, or add it at the end."""
    path = DOCS / name
    text = path.read_text(encoding="utf-8")
    before, heading, after = text.partition(f"## {title}\n")
    _, following, rest = after.partition("\n## ")
    section = f"## {title}\n\n" + "\n".join(lines) + "\n"
    whole = before + section + following + rest if heading else f"{text.rstrip()}\n\n{section}"
    path.write_text(whole, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Part:
    """The part of a document between the two markers of one command, which writes nothing else there."""

    page: Path
    name: str
    command: str

    @property
    def begin(self) -> str:
        """The marker in front."""
        return f"<!-- {self.name}: written by {self.command} -->"

    @property
    def end(self) -> str:
        """The marker behind."""
        return f"<!-- {self.name}: end -->"

    def read(self) -> str:
        """What stands there now. Raises: SystemExit where there are no markers"""
        return self._split(self.page.read_text(encoding="utf-8"))[1]

    def write(self, text: str) -> None:
        """Replace what stands there. Raises: SystemExit where there are no markers"""
        self.page.write_text(self.rewritten(self.page.read_text(encoding="utf-8"), text), encoding="utf-8")

    def rewritten(self, page: str, text: str) -> str:
        """The page with ``text`` between the markers, and everything else as it was."""
        before, _, after = self._split(page)
        return f"{before}{self.begin}\n\n{text}\n\n{self.end}{after}"

    def _split(self, page: str) -> tuple[str, str, str]:
        before, begin, rest = page.partition(self.begin)
        inside, end, after = rest.partition(self.end)
        if not (begin and end):
            raise SystemExit(f"{self.page.name} has no {self.begin} ... {self.end}")
        return before, inside, after
