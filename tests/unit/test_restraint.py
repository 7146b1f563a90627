"""When a host starts no further agent: too little memory, agents that end before they are ready; what it may use."""

from pathlib import Path

import psutil
import pytest

from backend.agent import machine
from backend.agent.restraint import FREE_FAILURES, LONGEST_REST_SECONDS, MB, Restraint
from backend.common.contract import Trouble

GB = 1024 * MB


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def restraint(clock: Clock) -> Restraint:
    return Restraint(reserve_mb=512, available_bytes=lambda: GB, now=clock)


def cgroup(folder: Path, **files: str) -> Path:
    """A folder as the kernel shows it; a name's dots are written as underscores."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")
    return folder


def fail(restraint: Restraint, agent_id: str = "a") -> None:
    """Let an agent be started and end before it is ready."""
    restraint.started(agent_id)
    restraint.failed(agent_id)


@pytest.mark.parametrize(("available", "room"), [(512 * MB, None), (512 * MB - 1, 0), (0, 0)])
def test_no_agent_is_started_from_the_memory_that_is_to_stay_free(available: int, room: int | None) -> None:
    restraint = Restraint(reserve_mb=512, available_bytes=lambda: available)
    assert restraint.room(starting=0) == room
    assert restraint.trouble() == (None if room is None else Trouble.MEMORY)


def test_without_a_reserve_nobody_asks_for_memory() -> None:
    assert Restraint(reserve_mb=0, available_bytes=lambda: 0).room(starting=0) is None


def test_after_some_failures_in_a_row_a_host_rests_longer_and_longer(restraint: Restraint, clock: Clock) -> None:
    rests = []
    for number in range(1, 20):
        fail(restraint)
        if number < FREE_FAILURES:
            assert restraint.room(starting=0) is None
            continue
        assert restraint.room(starting=0) == 0
        began = clock.now
        while restraint.room(starting=0) == 0:
            clock.now += 0.05
        rests.append(clock.now - began)
    assert rests[0] < 1.1
    assert LONGEST_REST_SECONDS / 2 <= rests[-1] <= LONGEST_REST_SECONDS + 0.1
    assert len({round(rest, 1) for rest in rests[-8:]}) > 1  # jitter


def test_agents_that_were_starting_together_fail_once(restraint: Restraint) -> None:
    """A LiveKit server that goes away must not look like a bot that crashes again and again."""
    for number in range(8):
        restraint.started(f"a{number}")
    for number in range(8):
        restraint.failed(f"a{number}")
    assert restraint.trouble() is None
    assert restraint.room(starting=0) is None


def test_agents_that_crash_when_they_are_ready_are_not_mended_by_others_that_are_only_ready(
    restraint: Restraint,
) -> None:
    for number in range(FREE_FAILURES):
        agent_id = f"a{number}"
        restraint.started(agent_id)
        restraint.ready([agent_id])
        restraint.failed(agent_id, was_ready=True)
    assert restraint.trouble() is Trouble.CRASHES
    restraint.started("b")
    restraint.ready(["b"])
    assert restraint.trouble() is Trouble.CRASHES
    restraint.ready(["b"], steady_ids=["b"])
    assert restraint.trouble() is None


def test_whoever_has_ended_shows_nothing(restraint: Restraint) -> None:
    restraint.started("a")
    restraint.ended("a")
    restraint.failed("a")
    assert restraint._failures == 0


def test_after_a_rest_one_agent_is_tried_at_a_time(restraint: Restraint, clock: Clock) -> None:
    for _ in range(FREE_FAILURES):
        fail(restraint)
    clock.now += LONGEST_REST_SECONDS
    assert restraint.trouble() is Trouble.CRASHES
    assert restraint.room(starting=0) == 1
    assert restraint.room(starting=1) == 0


def test_only_an_agent_started_since_shows_that_it_is_mended(restraint: Restraint) -> None:
    restraint.started("old")
    for _ in range(FREE_FAILURES):
        fail(restraint)
    restraint.ready(["old"])
    assert restraint.trouble() is Trouble.CRASHES
    restraint.started("new")
    restraint.ready(["old", "new"])
    assert restraint.trouble() is None
    assert restraint.room(starting=0) is None


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", None), ("100000 100000", 1), ("150000 100000", 1), ("50000 100000", 1), ("9900000 100000", None)],
)
def test_a_containers_quota_bounds_the_cores(tmp_path: Path, quota: str, cores: int | None) -> None:
    assert machine.cores([cgroup(tmp_path / "c", cpu_max=quota)]) == (cores or machine.cores([]))


def test_the_cores_are_those_that_the_process_may_run_on() -> None:
    assert machine.cores([]) == len(psutil.Process().cpu_affinity())


def test_a_containers_memory_is_its_smaller_limit_less_what_it_cannot_drop(tmp_path: Path) -> None:
    used = {"memory_current": str(300 * MB), "memory_stat": f"anon 1\ninactive_file {100 * MB}\nfile 5"}
    inner = cgroup(tmp_path / "c", memory_max=str(GB), memory_high=str(GB // 2), **used)
    outer = cgroup(tmp_path / "d", memory_max="max", memory_high="max", **used)
    assert machine.available_bytes([inner, outer]) == GB // 2 - 200 * MB
    assert machine.available_bytes([cgroup(tmp_path / "full", memory_max=str(MB), **used)]) == 0


def test_without_limits_the_machines_memory_counts(tmp_path: Path) -> None:
    unlimited = cgroup(tmp_path / "c", memory_max="max", memory_current="5")
    found = machine.available_bytes([unlimited, tmp_path / "not there"])
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.3)
