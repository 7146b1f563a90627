"""What holds while the launcher, or Redis, is away: agents live on, and no exit is lost."""

import json
import os
import signal
import subprocess
import time

import pytest

from backend.agent import process
from backend.common.contract import Agent
from backend.common.launcher_socket import LauncherRefused
from tests.running_launcher import START_SECONDS, Launch, RunningLauncher
from tests.waiting import wait_until

METHODS = ("fork", "spawn")
ATTEMPT_SECONDS = 0.25
"""How long the launcher waits for Redis."""
NOISE_SECONDS = 0.5
"""What a busy machine adds."""


def crash(launcher: RunningLauncher) -> None:
    assert launcher.stop(signal.SIGKILL) == -9


def forge(launcher: RunningLauncher, agent_id: str, **changes: object) -> None:
    """Change what a state file says."""
    path = launcher.agents_folder / f"{agent_id}.json"
    path.write_text(json.dumps(launcher.state(agent_id) | changes))


def let_go(launcher: RunningLauncher, agent: Agent) -> None:
    """Let an agent that lingers exit with 7."""
    (launcher.folder / f"{agent.id}.go").touch()
    wait_until(lambda: process.start_time(agent.pid) is None)


@pytest.mark.parametrize("method", METHODS)
def test_the_next_launcher_adopts_what_a_killed_one_left(launch: Launch, method: str) -> None:
    launcher = launch(AGENT_START_METHOD=method, MAX_BOTS="2")
    agent, other = launcher.spawn("a", "ignore"), launcher.spawn("b")
    for one in (agent, other):
        launcher.arrive(one)
        launcher.state(one.id)
    child = launcher.told("a")["child"]
    crash(launcher)
    assert process.start_time(agent.pid)
    launcher.start()
    assert "launcher is ready capacity=2 adopted=2" in launcher.log.read_text()  # before the image was loaded
    assert launcher.living() == ["a", "b"]
    assert launcher.spawn("a") == agent
    with pytest.raises(LauncherRefused, match="full"):
        launcher.spawn("c")
    launcher.ask(do="kill", agent_id="a", nonce=agent.nonce)
    assert launcher.wait_for_report(agent) == ""  # nobody can wait for a process that is not its child
    wait_until(lambda: process.start_time(child) is None)
    assert launcher.living() == ["b"]
    assert launcher.files() == ["b.json"]


def test_an_adopted_agents_exit_code_is_what_it_said_last(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a", "linger")
    launcher.arrive(agent)
    launcher.state("a")
    crash(launcher)
    launcher.start()
    let_go(launcher, agent)
    assert launcher.wait_for_report(agent) == "7"


def test_what_an_agent_left_that_ended_without_a_launcher_is_ended_by_the_next(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a", "ignore")
    launcher.arrive(agent)
    launcher.state("a")
    child = launcher.told("a")["child"]
    crash(launcher)
    os.kill(agent.pid, signal.SIGKILL)
    wait_until(lambda: process.start_time(agent.pid) is None)
    assert process.start_time(child)
    launcher.start()
    launcher.wait_for_report(agent)
    wait_until(lambda: process.start_time(child) is None, what="its child is gone")


def test_a_group_that_another_process_leads_by_now_is_left_alone(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a", "ignore")
    launcher.told("a")
    process.kill_group(agent.pid, 1)  # what was started then is not what has the pid now
    process.kill_group(0, None)  # would be this very group
    launcher.ask(do="status")
    assert process.start_time(agent.pid)


def test_who_ended_while_there_was_no_launcher_is_reported_by_the_next(launcher: RunningLauncher) -> None:
    said, silent = launcher.spawn("a", "linger"), launcher.spawn("b")
    for agent in (said, silent):
        launcher.arrive(agent)
        launcher.state(agent.id)
    crash(launcher)
    let_go(launcher, said)
    os.kill(silent.pid, signal.SIGKILL)
    wait_until(lambda: process.start_time(silent.pid) is None)
    launcher.start()
    assert launcher.wait_for_report(said) == "7"
    assert launcher.wait_for_report(silent) == ""
    assert launcher.living() == []
    wait_until(lambda: launcher.files() == [])


@pytest.mark.parametrize("what", ["pid", "boot_id"])
def test_a_foreign_process_with_an_agents_pid_is_left_alone(launcher: RunningLauncher, what: str) -> None:
    agent = launcher.spawn("a")
    launcher.arrive(agent)
    launcher.state("a")
    crash(launcher)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as foreign:
        if what == "pid":
            forge(launcher, "a", pid=foreign.pid)
        else:
            forge(launcher, "a", pid=foreign.pid, started=process.start_time(foreign.pid), boot_id="another")
        launcher.start()
        assert launcher.wait_for_report(agent) == ""
        assert launcher.living() == []
        assert launcher.files() == []
        is_alive = foreign.poll() is None
        foreign.kill()
    os.kill(agent.pid, signal.SIGKILL)  # its state was forged: nobody owns it any more
    assert is_alive


def test_an_agent_whose_launcher_and_log_are_gone_lives_on(launcher: RunningLauncher) -> None:
    launcher.stop()
    reading, writing = os.pipe()
    launcher.process = launcher.popen(writing)
    os.close(writing)
    wait_until(launcher.answers, timeout=START_SECONDS)
    agent = launcher.spawn("a", "linger")
    launcher.arrive(agent)
    assert wait_until(lambda: b"an agent lingers" in os.read(reading, 65_536))
    crash(launcher)
    os.close(reading)  # every line that it logs from now on fails
    launcher.start()
    assert launcher.living() == ["a"]
    let_go(launcher, agent)
    assert launcher.wait_for_report(agent) == "7"


def slowest_answer(launcher: RunningLauncher, *, seconds: float) -> float:
    """Ask for so long; returns the longest time that an answer took."""
    slowest, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        asked_at = time.monotonic()
        launcher.status()
        slowest = max(slowest, time.monotonic() - asked_at)
    return slowest


def test_a_frozen_redis_holds_the_launcher_up_for_a_moment_only(launcher: RunningLauncher) -> None:
    agents = [launcher.spawn(f"a{number}") for number in range(5)]
    for agent in agents:
        launcher.arrive(agent)
    launcher.valkey.freeze()
    for agent in agents:
        os.kill(agent.pid, signal.SIGKILL)
    assert slowest_answer(launcher, seconds=3) < ATTEMPT_SECONDS + NOISE_SECONDS
    assert launcher.status()["unreported"] == 5
    assert launcher.living() == []
    launcher.valkey.thaw()
    assert [launcher.wait_for_report(agent) for agent in agents] == ["-9"] * 5
    wait_until(lambda: launcher.status()["unreported"] == 0)
    assert launcher.files() == []


def test_exits_wait_for_a_redis_that_is_down(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a")
    launcher.arrive(agent)
    launcher.valkey.kill()
    os.kill(agent.pid, signal.SIGKILL)
    wait_until(lambda: launcher.status()["unreported"] == 1)
    assert launcher.spawn("b").pid  # what does not need Redis goes on
    launcher.valkey.start()
    assert launcher.wait_for_report(agent) == "-9"


def test_an_exit_that_could_not_be_reported_outlives_its_launcher(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a")
    launcher.arrive(agent)
    launcher.state("a")
    launcher.valkey.kill()
    os.kill(agent.pid, signal.SIGKILL)
    wait_until(lambda: launcher.status()["unreported"] == 1)
    crash(launcher)
    launcher.valkey.start()
    launcher.start()
    assert launcher.wait_for_report(agent) == "-9"
    wait_until(lambda: launcher.files() == [])


def test_a_launcher_that_stops_waits_a_little_for_redis(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a")
    launcher.arrive(agent)
    launcher.state("a")
    launcher.valkey.freeze()
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.stop(timeout=0.1)
    wait_until(lambda: process.start_time(agent.pid) is None)
    launcher.valkey.thaw()
    assert launcher.process
    assert launcher.process.wait(10) == 0
    assert launcher.record(agent)["exit"] == "-15"


def test_a_launcher_stops_without_redis_and_leaves_its_reports_to_the_next(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a")
    launcher.arrive(agent)
    launcher.state("a")
    launcher.valkey.kill()
    began = time.monotonic()
    assert launcher.stop() == 0
    assert time.monotonic() - began < 5
    assert launcher.files() == ["a.exit", "a.json"]
    launcher.valkey.start()
    launcher.start()
    assert launcher.wait_for_report(agent) == "-15"


def test_a_killed_agents_state_without_its_launcher_is_not_reported_twice(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a")
    launcher.arrive(agent)
    os.kill(agent.pid, signal.SIGKILL)
    launcher.wait_for_report(agent)
    crash(launcher)
    launcher.start()
    assert launcher.status()["unreported"] == 0
    assert "ended without a launcher" not in launcher.log.read_text()
