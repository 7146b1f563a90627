"""A launcher that takes new code on SIGHUP: the same process, the same agents, and nothing lost meanwhile."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from backend.agent import process
from backend.common import keys
from backend.common.contract import Agent
from backend.common.launcher_socket import LauncherRefused, LauncherUnreachable
from tests.running_launcher import HOST, START_SECONDS, Launch, RunningLauncher
from tests.waiting import wait_until

METHODS = ("fork", "spawn")


def renew(launcher: RunningLauncher) -> None:
    """Let it take new code; returns when that answers."""
    before = launcher.status()["nonce"]
    os.kill(launcher.pid, signal.SIGHUP)
    wait_until(lambda: answered_nonce(launcher) not in ("", before), timeout=START_SECONDS, what="the new code answers")


def answered_nonce(launcher: RunningLauncher) -> str:
    """The launcher's nonce; '' while it does not answer."""
    try:
        return str(launcher.status()["nonce"])
    except LauncherUnreachable:
        return ""


def is_replacing_itself(launcher: RunningLauncher) -> bool:
    """Whether the old code has stopped to listen and the new code does not listen yet."""
    return not launcher.socket.exists()


def is_zombie(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def talks(launcher: RunningLauncher, agent_id: str) -> Agent:
    """Start an agent that has a session."""
    agent = launcher.spawn(agent_id, "talk")
    launcher.told(agent_id)
    launcher.arrive(agent)
    launcher.valkey.client.hset(keys.agent(agent_id), "state", "busy")
    return agent


def test_a_renewed_launcher_is_the_same_process_with_new_code_and_the_same_agents(launcher: RunningLauncher) -> None:
    (launcher.folder / "release").write_text("1")
    agent = talks(launcher, "a")
    (launcher.folder / "release").write_text("2")
    pid = launcher.pid
    renew(launcher)
    assert launcher.pid == pid
    assert launcher.process
    assert launcher.process.poll() is None
    assert launcher.living() == ["a"]
    assert process.start_time(agent.pid)
    launcher.spawn("b", "show_release")
    assert launcher.told("b") == {"release": "2"}


def test_new_code_that_does_not_start_changes_nothing(launcher: RunningLauncher) -> None:
    agent, nonce = talks(launcher, "a"), launcher.status()["nonce"]
    (launcher.folder / "release").write_text("broken")
    os.kill(launcher.pid, signal.SIGHUP)
    wait_until(lambda: "the new code does not start" in launcher.log.read_text(), timeout=START_SECONDS)
    assert launcher.status()["nonce"] == nonce
    assert launcher.living() == ["a"]
    assert process.start_time(agent.pid)
    (launcher.folder / "release").write_text("mended")
    renew(launcher)
    launcher.spawn("b", "show_release")
    assert launcher.told("b") == {"release": "mended"}


@pytest.mark.parametrize("method", METHODS)
def test_a_renewed_launcher_waits_for_its_agents_as_for_children(launch: Launch, method: str) -> None:
    launcher = launch(AGENT_START_METHOD=method)
    agent = talks(launcher, "a")
    renew(launcher)
    assert psutil.Process(agent.pid).ppid() == launcher.pid
    os.kill(agent.pid, signal.SIGKILL)
    assert launcher.wait_for_report(agent) == "-9"  # only a parent learns it: it left no last words
    assert not is_zombie(agent.pid)
    wait_until(lambda: launcher.files() == [])


def test_an_exit_while_the_launcher_is_renewed_is_reported_and_leaves_no_zombie(launcher: RunningLauncher) -> None:
    agent, other = talks(launcher, "a"), talks(launcher, "b")
    os.kill(launcher.pid, signal.SIGHUP)
    wait_until(lambda: is_replacing_itself(launcher), timeout=START_SECONDS)
    os.kill(agent.pid, signal.SIGKILL)
    assert launcher.wait_for_report(agent) == "-9"
    wait_until(lambda: answered_nonce(launcher), timeout=START_SECONDS)
    assert launcher.living() == ["b"]
    wait_until(lambda: psutil.Process(launcher.pid).children() == [psutil.Process(other.pid)], what="no zombie")


def test_an_exit_that_redis_did_not_hear_of_survives_the_renewal(launcher: RunningLauncher) -> None:
    agent = talks(launcher, "a")
    launcher.valkey.kill()
    os.kill(agent.pid, signal.SIGKILL)
    wait_until(lambda: launcher.status()["unreported"] == 1)
    renew(launcher)
    assert launcher.status()["unreported"] == 1
    launcher.valkey.start()
    assert launcher.wait_for_report(agent) == "-9"


def test_a_launcher_that_is_killed_while_it_renews_itself_leaves_its_agents_to_the_next(
    launcher: RunningLauncher,
) -> None:
    agent = talks(launcher, "a")
    os.kill(launcher.pid, signal.SIGHUP)
    wait_until(lambda: is_replacing_itself(launcher), timeout=START_SECONDS)
    assert launcher.stop(signal.SIGKILL) == -9
    launcher.start()
    assert launcher.living() == ["a"]
    assert process.start_time(agent.pid)


def test_a_signal_to_stop_that_comes_meanwhile_is_heard_by_the_new_code(launch: Launch) -> None:
    launcher = launch(DRAIN_TIMEOUT="60")
    warm, talking = launcher.spawn("a"), talks(launcher, "b")
    launcher.state("a")
    os.kill(launcher.pid, signal.SIGHUP)
    wait_until(lambda: is_replacing_itself(launcher), timeout=START_SECONDS)
    os.kill(launcher.pid, signal.SIGTERM)
    wait_until(lambda: process.start_time(warm.pid) is None, timeout=START_SECONDS, what="it drains")
    assert process.start_time(talking.pid)
    assert launcher.stop(signal.SIGTERM) == 0


def test_nobody_else_becomes_the_hosts_launcher_meanwhile(launcher: RunningLauncher) -> None:
    os.kill(launcher.pid, signal.SIGHUP)
    wait_until(lambda: is_replacing_itself(launcher), timeout=START_SECONDS)
    second = RunningLauncher(launcher.folder, launcher.valkey)
    second.log = launcher.folder / "second.log"
    assert second.popen().wait(START_SECONDS) == 1
    assert "another launcher runs" in second.log.read_text()


def test_warm_agents_of_the_old_code_are_replaced_one_after_the_other(launcher: RunningLauncher) -> None:
    warm = [launcher.spawn(name) for name in ("a", "b")]
    for agent in warm:
        launcher.state(agent.id)
        launcher.arrive(agent)
    talking = talks(launcher, "c")
    renew(launcher)
    new = launcher.spawn("d")
    launcher.arrive(new)
    reports = []
    for agent in warm:
        assert launcher.wait_for_report(agent) == "-15"
        reports.append(time.monotonic())
    assert reports[1] - reports[0] > 1  # at the next look
    assert launcher.living() == ["c", "d"]
    assert process.start_time(talking.pid)
    assert launcher.valkey.client.zscore(keys.POOL_READY, "d")


def test_a_draining_launcher_takes_no_new_code(launch: Launch) -> None:
    launcher = launch(DRAIN_TIMEOUT="60")
    talks(launcher, "a")
    nonce = launcher.status()["nonce"]
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.stop(timeout=0.1)
    os.kill(launcher.pid, signal.SIGHUP)
    with pytest.raises(LauncherRefused, match="draining"):
        launcher.spawn("b")
    assert launcher.status()["nonce"] == nonce
    assert "the new code is tried" not in launcher.log.read_text()
    assert launcher.valkey.client.zscore(keys.HOSTS, HOST) is None
