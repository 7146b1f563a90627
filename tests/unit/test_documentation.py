"""The tables of docs/operations.md say what the code does: keys, end reasons, tasks."""

import re
from pathlib import Path

import pytest

from backend.common.contract import EndReason
from backend.common.keys import TABLE, Key

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def section(title: str) -> list[list[str]]:
    """Give the rows of the table under a heading, each as its cells."""
    text = OPERATIONS.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in text.split("|---", 1)[1].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_table_of_keys_names_every_key_and_no_other() -> None:
    assert sorted(row[0].strip("` ") for row in section("Redis keys")) == sorted(key.pattern for key in TABLE)


@pytest.mark.parametrize("key", TABLE, ids=lambda key: key.pattern)
def test_a_documented_key_has_its_type_and_a_ttl_or_the_reason_for_none(key: Key) -> None:
    (row,) = [row for row in section("Redis keys") if row[0].strip("` ") == key.pattern]
    assert row[1] == key.type
    assert row[3].startswith("none:") == key.stays


def test_the_table_of_end_reasons_names_every_reason_and_whose_doing_it_is() -> None:
    assert {row[0].strip("` "): row[1] for row in section("End reasons")} == {
        str(reason): str(reason.cause) for reason in EndReason
    }


def test_every_celery_task_is_documented() -> None:
    tasks = (Path(__file__).parents[2] / "backend" / "orchestrator" / "tasks.py").read_text()
    names = re.findall(r'@app\.task\(name="([\w.]+)"\)', tasks)
    assert names
    assert [name for name in names if f"`{name}`" not in OPERATIONS] == []
