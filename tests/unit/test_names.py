"""keys.py, the exchange's twins, the Lua files and the record's fields speak of the same things."""

import inspect
import re
from pathlib import Path

import pytest

from backend.common import exchange, keys
from backend.common.contract import REMEMBERED

ROOT = Path(__file__).parents[2]
OPERATIONS = sorted(path.stem for path in exchange.LUA.glob("*.lua") if not path.stem.startswith("_"))
LUA_TEXTS = {path.name: path.read_text() for path in exchange.LUA.glob("*.lua")}
PATTERNS = {key.pattern for key in keys.TABLE}


def shape(pattern: str) -> str:
    """A name with each of its variable parts as ``{}``."""
    return re.sub(r"\{\w+\}", "{}", pattern)


SHAPES = {shape(pattern) for pattern in PATTERNS}


def names_made_by(text: str) -> set[str]:
    """The shapes of all key names that a Lua text builds from PREFIX, each to the end of its expression."""
    found = set()
    for expression in re.findall(r"PREFIX((?:\s*\.\.\s*(?:'[^']*'|\w+))+)", text):
        parts = re.findall(r"'([^']*)'|\.\.\s*(\w+)", expression)
        found.add("".join(literal or "{}" for literal, _ in parts))
    return found


def names_added_to(text: str) -> set[str]:
    """The endings that a Lua text puts behind another key's name: ``session .. ':prompt'``."""
    return set(re.findall(r"(?:session|KEYS\[\d\]) \.\. '(:\w+)'", text))


def test_every_key_that_lua_builds_is_in_the_table() -> None:
    made = set().union(*(names_made_by(text) for text in LUA_TEXTS.values()))
    assert {"deadlines", "session:{}", "agent:{}:inbox"} <= made, "the expression no longer finds them"
    assert made <= SHAPES


def test_every_ending_that_lua_adds_to_a_session_is_in_the_table() -> None:
    added = set().union(*(names_added_to(text) for text in LUA_TEXTS.values()))
    assert {":prompt", ":turns", ":callers"} == added
    assert {f"session:{{}}{ending}" for ending in added} <= SHAPES


def test_key_names_are_built_in_one_lua_file() -> None:
    assert {name for name, text in LUA_TEXTS.items() if names_made_by(text)} == {"_names.lua"}


def test_every_function_and_constant_of_keys_makes_a_name_of_the_table() -> None:
    found = inspect.getmembers(keys, inspect.isfunction)
    functions = [function for _, function in found if function.__module__ == keys.__name__]
    made = {shape(function("{id}")) for function in functions if function is not keys.start}
    made |= {shape(keys.start("{scope}:{key}"))}
    made |= {value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    assert made == SHAPES


def test_every_row_of_the_table_has_a_ttl_or_a_reason_to_have_none() -> None:
    for key in keys.TABLE:
        assert key.ttl.startswith("none: ") == key.stays, key.pattern


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_lua_file_has_a_twin_and_a_test(operation: str) -> None:
    assert inspect.isfunction(getattr(exchange, operation))
    texts = [path.read_text() for path in (ROOT / "tests" / "integration").glob("test_*.py")]
    assert any(re.search(rf"\bx\.{operation}\(", text) for text in texts)


def test_each_twin_has_a_lua_file() -> None:
    twins = [
        name
        for name, function in inspect.getmembers(exchange, inspect.isfunction)
        if function.__module__ == exchange.__name__ and not name.startswith("_")
    ]
    assert sorted(twins) == OPERATIONS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_lua_file_starts_with_its_name_and_says_what_it_returns(operation: str) -> None:
    text = LUA_TEXTS[f"{operation}.lua"]
    assert text.startswith(f"-- {operation}: ")
    assert "-- Returns " in text
    assert all(f"-- KEYS[{number}]" in text for number in re.findall(r"^[^-].*KEYS\[(\d)\]", text, re.MULTILINE))


def test_lua_lines_are_as_short_as_those_of_python() -> None:
    assert {name for name, text in LUA_TEXTS.items() if max(map(len, text.splitlines())) > 120} == set()


def test_what_an_agent_remembers_is_what_lua_or_the_api_writes_into_the_record() -> None:
    lua = " ".join(LUA_TEXTS.values())
    writers = [*(ROOT / "backend" / "orchestrator").glob("*.py"), ROOT / "backend" / "common" / "tracing.py"]
    orchestrator = " ".join(path.read_text() for path in writers)
    for field in REMEMBERED:
        assert f"'{field}'" in lua or f'"{field}":' in orchestrator, field


def test_nothing_that_the_exchange_needs_to_make_a_session_again_is_forgotten() -> None:
    needed = set(re.findall(r"knows\.(\w+)", LUA_TEXTS["agent_returns.lua"]))
    assert needed
    assert needed <= set(REMEMBERED)
