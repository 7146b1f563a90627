"""What no tool checks: lengths of files, settings that are documented, locks without a registry, how Redis is asked."""

import ast
import re
import sys
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from backend.common.settings import PROGRAMS

ROOT = Path(__file__).parents[2]

LONGEST_MODULE, LONGEST_TEST, LONGEST_LUA, LONGEST_SHARED_LUA = 300, 400, 60, 150

LOCKS = (*ROOT.glob("requirements*.lock"), ROOT / "backend" / "orchestrator" / "page" / "package-lock.json")

BLOCKING = {"backend/agent/host_record.py"}
"""The launcher asks and waits: it has no event loop that would stand still meanwhile. Beat has a client of Celery's."""


def files(folder: str, suffix: str) -> list[Path]:
    return [path for path in (ROOT / folder).rglob(f"*{suffix}") if "node_modules" not in path.parts]


def variables(program: type[BaseSettings]) -> set[str]:
    return {str(field.validation_alias) for field in program.model_fields.values()}


SETTINGS = set().union(*map(variables, PROGRAMS))


def longest(path: Path) -> int:
    if path.suffix == ".lua":
        return LONGEST_SHARED_LUA if path.stem == "_shared" else LONGEST_LUA
    return LONGEST_TEST if path.is_relative_to(ROOT / "tests") else LONGEST_MODULE


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    sources = files("backend", ".py") + files("backend", ".lua") + files("tests", ".py")
    assert len(sources) > 50, "the search finds the sources"
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in sources
        if (lines := len(path.read_text().splitlines())) > longest(path)
    }
    assert not too_long


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path in files("backend", ".py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_the_example_lists_every_variable_and_no_other() -> None:
    text = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^# ([A-Z][A-Z_]+)=", text, re.MULTILINE)) == SETTINGS
    assert not re.search(r"^[A-Z]", text, re.MULTILINE), "copied as it is, it changes nothing"


def test_the_example_shows_the_defaults() -> None:
    shown = dict(re.findall(r"^# ([A-Z][A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    defaults = {
        str(field.validation_alias): str(field.default).lower() if field.annotation is bool else str(field.default)
        for program in PROGRAMS
        for field in program.model_fields.values()
        if isinstance(field.default, str | int | float | Path)
    }
    if sys.platform == "darwin":
        defaults["AGENT_START_METHOD"] = "fork"  # what the example shows, with the exception in words
    assert {name: shown[name] for name in defaults} == {
        name: default.removesuffix(".0") for name, default in defaults.items()
    }


def test_the_operations_guide_lists_every_variable_and_no_other() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    table = guide.partition("## Variables")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    assert set(re.findall(r"`([A-Z][A-Z_]+)`", " ".join(first_cells))) == SETTINGS


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_no_lock_names_a_registry_or_a_path(lock: Path) -> None:
    text = lock.read_text()
    assert "sha256" in text or "sha512" in text
    # npm writes addresses as "resolved", uv as options or behind an @.
    assert not re.findall(r'"resolved".*|--\S*(?:index|links).*|@ \w+:.*|.*/tmp/.*', text)


def test_every_make_target_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text()
    declared = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    assert targets == set(" ".join(declared).split())
    assert set(re.findall(r"^([a-z]+):.*## \S", text, re.MULTILINE)) == targets


def blocks(source: str) -> bool:
    """Whether it makes a client of Redis that holds an event loop up."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("redis", "redis.client", "redis.connection"):
            return True
        if isinstance(node, ast.Call) and re.match(r"redis\.(?!asyncio\.)", ast.unparse(node.func)):
            return True
    return False


def searches(source: str) -> bool:
    """Whether it lets Redis look at all its keys: that takes the longer the more sessions there are, and all wait."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_told = bool(node.args or node.keywords)  # a dictionary's keys() is told nothing
            if node.func.attr in ("scan", "scan_iter") or (node.func.attr == "keys" and is_told):
                return True
            if node.func.attr == "execute_command" and re.match(r"'(KEYS|SCAN)\b", ast.unparse(node.args[0]), re.I):
                return True
    return False


@pytest.mark.parametrize(
    "source", ["redis.Redis(port=1)", "redis.Redis.from_url(x)", "redis.from_url(x)", "from redis import Redis"]
)
def test_a_client_that_blocks_is_found(source: str) -> None:
    assert blocks(source)
    assert not blocks("client: redis.Redis = redis.asyncio.Redis.from_url(x)")


def test_no_event_loop_waits_for_redis() -> None:
    found = {str(path.relative_to(ROOT)) for path in files("backend", ".py") if blocks(path.read_text())}
    assert found == BLOCKING


@pytest.mark.parametrize(
    "source", ["c.keys('session:*')", "c.keys(pattern=p)", "c.scan_iter()", "c.scan(0)", "c.execute_command('keys', p)"]
)
def test_a_search_through_all_keys_is_found(source: str) -> None:
    assert searches(source)
    assert not searches("{}.keys() | keys.session(one)")


def test_nothing_lets_redis_look_at_all_its_keys() -> None:
    assert not [path for path in files("backend", ".py") if searches(path.read_text())]
    called = re.compile(r"""call\(\s*['"](KEYS|SCAN)['"]""", re.IGNORECASE)
    assert not [path for path in files("backend", ".lua") if called.search(path.read_text())]
