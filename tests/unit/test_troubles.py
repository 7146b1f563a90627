"""What /health says of hosts in trouble."""

from backend.common.contract import Trouble
from backend.orchestrator.troubles import describe


def test_a_crash_is_told_with_its_last_error() -> None:
    assert describe("h1", Trouble.CRASHES, "KeyError in bot.py:3").endswith("(KeyError in bot.py:3)")


def test_the_last_error_of_a_host_short_of_memory_is_beside_the_point() -> None:
    assert "KeyError" not in describe("h1", Trouble.MEMORY, "KeyError in bot.py:3")


def test_a_trouble_that_only_a_newer_launcher_knows_is_told_in_its_own_word() -> None:
    assert describe("h1", "flooded", "") == "h1: flooded"
