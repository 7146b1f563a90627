"""What the launcher does by the clock: comparisons, deadlines, its own record, and the way it stops."""

import os
import signal
import subprocess
import time

import pytest

from backend.agent import process
from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent
from backend.common.launcher_socket import LauncherRefused
from backend.common.limits import Limits
from tests.integration.desk import Desk
from tests.running_launcher import HOST, Launch, RunningLauncher
from tests.waiting import wait_until


def wait_for_comparisons(launcher: RunningLauncher, count: int) -> None:
    """Let the launcher look at its agents' records so many times."""
    seen: set[str] = set()

    def has_compared() -> bool:
        seen.add(launcher.valkey.client.hget(keys.host(HOST), "seen_ms"))
        return len(seen) > count

    wait_until(has_compared, timeout=2 * count + 5)


def tell_to_stop(launcher: RunningLauncher, agent: Agent, *, ms_ago: int) -> None:
    """Do to the record what ending a session does."""
    client = launcher.valkey.client
    client.hset(keys.agent(agent.id), "state", "stopping")
    client.zadd(keys.DEADLINES, {f"stop:{agent.id}": launcher.valkey.now_ms() - ms_ago + Limits().stop})


def test_who_was_told_to_stop_is_ended_after_its_goodbye(launcher: RunningLauncher) -> None:
    long_ago, just_now = launcher.spawn("a"), launcher.spawn("b")
    for agent in (long_ago, just_now):
        launcher.arrive(agent)
    tell_to_stop(launcher, just_now, ms_ago=-60_000)
    tell_to_stop(launcher, long_ago, ms_ago=4_000)
    assert launcher.wait_for_report(long_ago) == "-15"
    wait_for_comparisons(launcher, 1)
    assert launcher.living() == ["b"]


def test_who_is_gone_for_redis_is_ended_at_once(launcher: RunningLauncher) -> None:
    agent, other = launcher.spawn("a"), launcher.spawn("b")
    launcher.arrive(agent)
    launcher.arrive(other)
    launcher.valkey.client.hset(keys.agent("a"), "state", "gone")
    launcher.valkey.client.hset(keys.agent("b"), mapping={"state": "gone", "nonce": "of another process"})
    wait_until(lambda: launcher.living() == ["b"])
    assert process.start_time(other.pid)


def test_a_record_that_is_missing_or_not_legible_is_no_reason_to_end(launcher: RunningLauncher) -> None:
    launcher.spawn("a")
    launcher.spawn("b")
    wait_for_comparisons(launcher, 2)
    launcher.valkey.client.set(keys.agent("b"), "not a hash", ex=60)
    seen = launcher.valkey.client.hget(keys.host(HOST), "seen_ms")
    wait_until(lambda: "Redis does not answer the launcher" in launcher.log.read_text())
    launcher.valkey.client.delete(keys.agent("b"))
    wait_until(lambda: launcher.valkey.client.hget(keys.host(HOST), "seen_ms") != seen)
    assert launcher.living() == ["a", "b"]


def test_who_outlives_its_deadline_is_ended(launcher: RunningLauncher) -> None:
    agent, other = launcher.spawn("a", "outstay"), launcher.spawn("b", "talk")
    launcher.arrive(agent)
    assert launcher.wait_for_report(agent) == "-15"
    assert process.start_time(other.pid)


def test_a_host_says_what_it_is_and_that_it_is_there(launch: Launch) -> None:
    launcher = launch(MAX_BOTS="7")
    client = launcher.valkey.client
    launcher.spawn("a")
    wait_until(lambda: client.hget(keys.host(HOST), "agents") == "1")
    record = client.hgetall(keys.host(HOST))
    assert record["capacity"] == "7"
    assert record["cores"] == str(os.cpu_count())
    assert record["boot_id"] == process.boot_id()
    assert record["nonce"] == launcher.status()["nonce"]
    assert record["last_error"] == ""
    assert abs(int(record["seen_ms"]) - launcher.valkey.now_ms()) < 5_000
    assert client.zscore(keys.HOSTS, HOST) >= int(record["seen_ms"])
    assert 0 < client.ttl(keys.host(HOST)) <= 15


def test_a_stop_ends_who_is_warm_at_once_and_who_talks_later(launch: Launch) -> None:
    launcher = launch(DRAIN_TIMEOUT="3")
    client = launcher.valkey.client
    warm, talking = launcher.spawn("a"), launcher.spawn("b", "talk")
    launcher.arrive(warm)
    launcher.told("b")
    launcher.arrive(talking)
    client.hset(keys.agent("b"), "state", "busy")
    began = time.monotonic()
    os.killpg(launcher.pid, signal.SIGTERM)  # as a supervisor does: agents are in groups of their own
    assert launcher.wait_for_report(warm) == "-15"
    assert time.monotonic() - began < 1.5
    with pytest.raises(LauncherRefused, match="draining"):
        launcher.spawn("c")
    wait_until(lambda: client.zrange(keys.HOSTS, 0, -1) == [])
    assert launcher.living() == ["b"]
    assert launcher.process
    assert launcher.process.wait(10) == 0
    assert time.monotonic() - began >= 3
    assert launcher.record(talking)["exit"] == "-15"
    assert not client.exists(keys.host(HOST))
    assert not launcher.socket.exists()
    assert launcher.files() == []


def test_the_calls_that_a_stop_cuts_short_end_and_are_not_handed_on(launch: Launch) -> None:
    launcher = launch(DRAIN_TIMEOUT="0")
    agent = launcher.spawn("a", "talk")
    launcher.told("a")
    launcher.arrive(agent)
    desk = Desk(launcher.valkey)
    desk.session("s")
    assert launcher.stop() == 0
    assert desk.field("session:s", "end_reason") == "shutdown"


def test_a_redis_that_forgot_everything_is_noticed_and_said_loudly(launcher: RunningLauncher) -> None:
    desk = Desk(launcher.valkey)
    desk.do(x.expire_leases())
    wait_for_comparisons(launcher, 2)
    launcher.valkey.client.flushall()
    desk.do(x.expire_leases())
    said = "Redis has forgotten everything"
    wait_until(lambda: said in launcher.log.read_text(), timeout=8)
    wait_for_comparisons(launcher, 1)
    assert said in launcher.valkey.client.hget(keys.host(HOST), "last_error")
    assert launcher.log.read_text().count(said) == 1


def test_a_draining_host_gives_no_agent_to_a_session(launch: Launch) -> None:
    launcher = launch(DRAIN_TIMEOUT="60")
    agent = launcher.spawn("a", "ignore")
    launcher.told("a")
    launcher.arrive(agent)
    assert launcher.valkey.client.zrange(keys.POOL_READY, 0, -1) == ["a"]
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.stop(timeout=0.5)
    wait_until(lambda: launcher.valkey.client.zrange(keys.POOL_READY, 0, -1) == [])
    assert launcher.record(agent)["state"] == "warm"


def test_without_redis_a_deadline_tells_who_talks(launch: Launch) -> None:
    launcher = launch(DRAIN_TIMEOUT="60")
    warm, talking = launcher.spawn("a"), launcher.spawn("b", "talk")
    launcher.state("a")
    launcher.told("b")
    launcher.valkey.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.stop(timeout=0.1)
    wait_until(lambda: process.start_time(warm.pid) is None)
    assert process.start_time(talking.pid)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_everyone_now(launch: Launch, second: signal.Signals) -> None:
    launcher = launch(DRAIN_TIMEOUT="60")
    agent = launcher.spawn("a", "talk")
    launcher.told("a")
    launcher.arrive(agent)
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.stop(timeout=0.5)
    assert process.start_time(agent.pid)
    assert launcher.stop(second) == 0
    assert launcher.record(agent)["exit"] == "-15"


def test_old_logs_of_sessions_are_removed_and_nothing_else(launch: Launch) -> None:
    launcher = launch()
    launcher.stop()
    logs = launcher.folder / "logs"
    logs.mkdir()
    for name in ("session_1_old.log", "session_2_new.log", "of-somebody-else.log"):
        (logs / name).touch()
        if name != "session_2_new.log":
            os.utime(logs / name, (0, time.time() - 8 * 24 * 3_600))
    launcher.start()
    wait_until(lambda: not (logs / "session_1_old.log").exists())
    assert sorted(path.name for path in logs.iterdir()) == ["of-somebody-else.log", "session_2_new.log"]
