"""What a measurement leaves in docs/: a table, the machine, a section that the next run replaces."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


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
