"""A host in trouble: agents that end before they are ready do not burn it, and memory that is short starts none."""

import asyncio
import contextlib
import os
import signal
import time

import pytest

from backend.agent.restraint import FREE_FAILURES
from backend.common import exchange as x
from backend.common import keys
from backend.common.launcher_socket import LauncherRefused
from tests.fakes.fake_bots import QUOTED
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import running_api
from tests.running_launcher import HOST, Launch, RunningLauncher
from tests.waiting import wait_until, wait_until_async

BURNING_SECONDS = 4.0
MORE_THAN_ANYONE_HAS_MB = "1000000"


def spawns_in(launcher: RunningLauncher, life: str, *, seconds: float) -> int:
    """Ask for an agent as often as can be; returns how many were started."""
    until, started = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        with contextlib.suppress(LauncherRefused):
            launcher.spawn(f"{life}-{started}", life)
            started += 1
    return started


def host_says(launcher: RunningLauncher, field: str) -> str:
    return str(launcher.valkey.client.hget(keys.host(HOST), field))


@pytest.mark.parametrize("life", ["crash", "fail", "leave"])
def test_agents_that_end_before_they_are_ready_are_started_less_and_less(launch: Launch, life: str) -> None:
    launcher = launch(MAX_BOTS="5")
    wait_until(lambda: host_says(launcher, "capacity") == "5")
    assert (
        3 <= spawns_in(launcher, life, seconds=BURNING_SECONDS) <= 20
    )  # three times all five; without restraint it is more than a hundred
    wait_until(lambda: host_says(launcher, "trouble") == "crashes")
    wait_until(lambda: host_says(launcher, "capacity") in ("0", "1"))  # one more while it may be tried
    assert QUOTED not in launcher.log.read_text()


def test_a_mended_bot_is_started_as_before(launch: Launch) -> None:
    launcher = launch()
    spawns_in(launcher, "crash", seconds=1)
    wait_until(lambda: host_says(launcher, "trouble") == "crashes")

    def is_tried() -> bool:
        try:
            launcher.arrive(launcher.spawn("good"))
        except LauncherRefused:
            return False
        return True

    wait_until(is_tried, timeout=10, what="one is tried after a rest")
    wait_until(lambda: host_says(launcher, "trouble") == "")
    assert host_says(launcher, "capacity") == "50"
    assert launcher.spawn("b").pid
    assert launcher.spawn("c").pid


def test_an_agent_that_dies_in_its_call_says_nothing_about_how_agents_start(launch: Launch) -> None:
    launcher = launch()
    agents = [launcher.spawn(f"a{number}", "talk") for number in range(6)]
    for agent in agents:
        launcher.arrive(agent)
        launcher.told(agent.id)
    for agent in agents:
        os.kill(agent.pid, signal.SIGKILL)
        launcher.wait_for_report(agent)
    assert launcher.spawn("b").pid
    assert host_says(launcher, "trouble") == ""


def test_an_agent_that_dies_while_it_is_warm_crashed_at_its_start(launch: Launch) -> None:
    launcher = launch()
    for number in range(FREE_FAILURES):
        assert host_says(launcher, "trouble") != "crashes"
        agent = launcher.spawn(f"a{number}")
        launcher.arrive(agent)
        os.kill(agent.pid, signal.SIGSEGV)
        launcher.wait_for_report(agent)
    wait_until(lambda: host_says(launcher, "trouble") == "crashes")


async def test_health_is_degraded_with_the_last_error_and_calls_may_come(
    launch: Launch, make_settings: MakeSettings
) -> None:
    launcher = await asyncio.to_thread(launch)
    await asyncio.to_thread(spawns_in, launcher, "crash", seconds=0.5)
    async with running_api(make_settings()) as api:
        await wait_until_async(lambda: host_says(launcher, "trouble") == "crashes")
        answer = await api.get("/health")
        metrics = (await api.get("/metrics")).text
    assert answer.body["components"]["hosts"]["state"] == "degraded"
    assert "RuntimeError in fake_bots.py:" in answer.body["components"]["hosts"]["detail"]
    assert QUOTED not in answer.text
    assert answer.body["status"] in ("degraded", "unavailable")  # what else this test has no server for
    assert 'greenroom_host_trouble{cause="crashes",host="h"} 1.0' in metrics
    assert 'greenroom_host_trouble{cause="memory",host="h"} 0.0' in metrics


def test_a_host_that_is_short_of_memory_starts_nobody_and_others_are_asked(launch: Launch) -> None:
    launcher = launch(MEMORY_RESERVE_MB=MORE_THAN_ANYONE_HAS_MB)
    client = launcher.valkey.client
    with pytest.raises(LauncherRefused, match="memory: less than MEMORY_RESERVE_MB is left"):
        launcher.spawn("a")
    wait_until(lambda: host_says(launcher, "trouble") == "memory")
    assert host_says(launcher, "capacity") == "0"
    run = launcher.exchange.run_sync
    run(client, x.host_reports("other", {"capacity": 1, "cores": 1}, is_open=True))
    reserved = run(client, x.reserve_spawns(target=2, most=10, base="b", cores=3))
    assert [agent.host_id for agent in reserved.agents] == ["other"]
    assert reserved.missing == 1
