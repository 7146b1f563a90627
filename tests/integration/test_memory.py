"""What agents weigh: read from the kernel one at a time, told in the host's record, shown by /metrics."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.agent.memory import AGAIN_LOOKS, LAUNCHER, Memory, read_pss_bytes
from backend.common import keys
from backend.common.contract import AgentState
from tests.running_launcher import HOST, launchers
from tests.valkey_server import Valkey
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells how shared pages are shared"
)
MEGABYTE = 1024 * 1024


@pytest.fixture
def pid() -> Iterator[int]:
    """A process that waits."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_a_process_weighs_something_and_one_that_is_gone_nothing(pid: int) -> None:
    wait_until(lambda: (read_pss_bytes(pid) or 0) > MEGABYTE, what="the interpreter is loaded")
    assert read_pss_bytes(2**22 + 1) is None  # no pid is so high


def test_each_look_measures_one_process_at_most(pid: int) -> None:
    memory, states = Memory(), {pid: AgentState.WARM}
    counts = [(figures["launcher_measured"], figures["warm_measured"]) for figures in map(memory.look, [states] * 3)]
    assert counts == [(1, 0), (1, 1), (1, 1)]


def test_a_figure_counts_only_in_the_state_it_was_taken_in(pid: int) -> None:
    memory = Memory()
    memory.look({})
    assert memory.look({pid: AgentState.WARM})["warm_measured"] == 1
    claimed = memory.look({pid: AgentState.CLAIMED})  # the state changed: it is measured anew
    assert (claimed["warm_measured"], claimed["busy_measured"]) == (0, 1)
    gone = memory.look({})
    assert (gone["busy_measured"], gone["busy_memory_bytes"], gone["launcher_measured"]) == (0, 0, 1)


def test_a_process_that_grew_is_measured_again(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = iter(range(1, 1_000))
    monkeypatch.setattr("backend.agent.memory.read_pss_bytes", lambda _: next(weights))
    memory, states = Memory(), {pid: AgentState.WARM}
    seen = [memory.look(states)["warm_memory_bytes"] for _ in range(3 * AGAIN_LOOKS)]
    assert seen == sorted(seen)
    assert len(set(seen)) == 3, "not yet, once, and again"


def test_agents_on_their_way_in_or_out_are_not_measured(pid: int) -> None:
    memory = Memory()
    for state in (AgentState.STARTING, AgentState.STOPPING, AgentState.GONE):
        for _ in range(2):
            figures = memory.look({pid: state})
        assert {name: figures[f"{name}_measured"] for name in ("warm", "busy", LAUNCHER)} == {
            "warm": 0,
            "busy": 0,
            "launcher": 1,
        }


def test_the_hosts_record_tells_what_its_warm_agents_weigh(valkey: Valkey) -> None:
    with launchers(valkey) as launch:
        launcher = launch()
        launcher.arrive(launcher.spawn("a"))
        record = keys.host(HOST)
        wait_until(lambda: valkey.client.hget(record, "warm_measured") == "1", timeout=15, what="it was measured")
        weight = int(valkey.client.hget(record, "warm_memory_bytes"))
        assert MEGABYTE < weight < 1000 * MEGABYTE
        assert int(valkey.client.hget(record, "launcher_memory_bytes")) > MEGABYTE
