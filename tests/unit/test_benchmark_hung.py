"""What the benchmark freezes is frozen: its figures say when that was found out."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.benchmarks import costs, hung
from tests.waiting import wait_until


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def ended() -> Iterator[int]:
    """A process that has ended and was not waited for: it takes signals, and does not stop."""
    with subprocess.Popen(["true"]) as process:
        wait_until(lambda: not costs.is_there(process.pid))
        yield process.pid


async def test_an_agent_that_has_ended_is_passed_over(
    sleeper: int, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hung, "STOP_SECONDS", 0.1)
    assert await hung._freeze_one([ended, sleeper]) == sleeper
    assert costs.is_stopped(sleeper)
    with pytest.raises(ProcessLookupError):
        await hung._freeze_one([ended])
