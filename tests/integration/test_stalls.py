"""A loop that is held up says by what: in processes of their own, which are really held up."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Start
from tests.livekit_server import LiveKitServer
from tests.running_launcher import Launch
from tests.valkey_server import Valkey, free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, time
from backend.common import logs, stalls
from backend.common.settings import CommonSettings

logs.configure(CommonSettings(), program="test")

def grind_the_beans(secret, seconds):
    time.sleep(seconds)

{main}

stalls.run(main())
"""
AGENT = """
import asyncio, time
from backend.agent import standby
from backend.common import logs, stalls
from backend.common.contract import Agent, EndReason
from backend.common.settings import LauncherSettings

settings = LauncherSettings()
logs.configure(settings, program="agent")

def grind_the_beans():
    time.sleep(0.3)

async def bot(briefing, link):
    await asyncio.sleep(0.1)
    grind_the_beans()
    return EndReason.GOODBYE

stalls.run(standby.serve(Agent(id="me", nonce="n", host_id="h"), bot, settings), is_calm=True)
"""
API = """
import time
from backend.common import stalls
from backend.orchestrator import api, views

stalls.QUIET_SECONDS = 0.0  # a busy machine stalls the start too, and that would be the only one logged

async def grind_the_beans(house):
    time.sleep(0.6)
    return True, {}

views.health = grind_the_beans
api.main()
"""


def lines_of(log: str) -> list[dict[str, Any]]:
    """What was logged of stalls; everything else is let by, lines of the interpreter too."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if "event loop" in line["message"]]


def log_of(main: str) -> list[dict[str, Any]]:
    """Run a program to its end, which must be a good one."""
    command = [sys.executable, "-c", PROGRAM.format(main=main)]
    environment = os.environ | {"LOG_FORMAT": "json", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=15, check=True)
    return lines_of(ended.stderr)


def test_a_stall_is_logged_with_its_length_and_the_stack_of_the_culprit() -> None:
    (line,) = log_of("""
async def main():
    await asyncio.sleep(0.01)
    grind_the_beans("swordfish", 0.3)
    await asyncio.sleep(0)
""")
    assert line["message"] == "the event loop stalled"
    assert line["level"] == "WARNING"
    assert 0.3 <= line["seconds"] < 3
    innermost, caller, *_ = line["stack"].split(" < ")
    assert innermost.endswith(" grind_the_beans")
    assert caller.endswith(" main")
    assert "swordfish" not in json.dumps(line)


def test_a_loop_that_only_waits_or_works_in_small_pieces_is_not_complained_of() -> None:
    told = log_of("""
async def main():
    await asyncio.sleep(0.3)
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        await asyncio.sleep(0)
    await asyncio.to_thread(grind_the_beans, "", 0.3)
""")
    assert told == []


def test_what_a_thread_does_between_two_runs_of_its_loop_is_no_stall() -> None:
    told = log_of("""
async def main():
    pass

loop = stalls.StallMonitor().new_loop()
for _ in range(2):
    loop.run_until_complete(main())
    grind_the_beans("", 0.3)
loop.close()
""")
    assert told == []


def test_stalls_that_come_often_are_logged_once_and_counted() -> None:
    lines = log_of("""
stalls.QUIET_SECONDS = 1.0

async def main():
    for _ in range(4):
        grind_the_beans("", 0.11)
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.0)
    grind_the_beans("", 0.11)
    await asyncio.sleep(0.2)
""")
    assert [line["left_out"] for line in lines] == [0, 3]


def test_a_loop_that_is_stuck_is_complained_of_while_it_is() -> None:
    stuck, over = log_of("""
stalls.STUCK_SECONDS = 0.3

async def main():
    grind_the_beans("", 0.8)
""")
    assert stuck["message"] == "the event loop is stuck"
    assert 0.3 <= stuck["seconds"] < over["seconds"]
    assert "grind_the_beans" in stuck["stack"]
    assert over["message"] == "the event loop stalled"


def test_an_observer_is_told_how_long_the_loop_was_busy_at_a_stretch() -> None:
    command = PROGRAM.format(
        main="""
stalls.LAG_SECONDS = 0.2
lags = []

async def main():
    await asyncio.sleep(0.3)
    grind_the_beans("", 0.3)
    await asyncio.sleep(0.5)
    print(lags)

"""
    ).replace("stalls.run(main())", "stalls.run(main(), on_lag=lags.append)")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    lags = json.loads(ended.stdout)
    assert len(lags) >= 3
    assert max(lags) >= 0.2
    assert min(lags) < 0.1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_agent_that_was_just_started_is_watched(launch: Launch, method: str) -> None:
    launcher = launch(AGENT_START_METHOD=method, LOG_FORMAT="json")
    launcher.spawn("a", "stall")
    wait_until(lambda: lines_of(launcher.log.read_text()), what="the stall is logged")
    (line,) = lines_of(launcher.log.read_text())
    assert "grind_the_beans" in line["stack"]
    assert (line["program"], line["agent_id"]) == ("agent", "a")
    wait_until(lambda: launcher.living() == [], what="the agent has ended")


def test_an_agent_is_looked_at_closely_while_it_has_a_session(valkey: Valkey, tmp_path: Path) -> None:
    variables = {"REDIS_URL": valkey.url, "RUN_DIR": str(tmp_path), "LOG_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    variables |= {"LIVEKIT_URL": "ws://127.0.0.1:9", "LOG_FORMAT": "json"}
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT], env=os.environ | variables, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: valkey.client.zscore(keys.POOL_READY, "me"), timeout=15, what="the agent is warm")
    start = Start(proposed_id="s", user_id="u", longest_ms=60_000, fleet_ceiling=9, user_ceiling=9)
    x.Exchange().run_sync(valkey.client, x.session_arrives(start))
    _, log = agent.communicate(timeout=15)
    assert agent.returncode == 0
    (line,) = lines_of(log)
    assert "grind_the_beans" in line["stack"]
    assert line["session_id"] == "s"


def test_the_api_is_watched(valkey: Valkey, livekit: LiveKitServer, tmp_path: Path, no_variables: None) -> None:
    port = free_port()
    known = {"REDIS_URL": valkey.url, "LIVEKIT_URL": livekit.url, "PORT": str(port), "LOG_FORMAT": "json"}
    known |= {"LIVEKIT_API_KEY": livekit.key, "LIVEKIT_API_SECRET": livekit.secret, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", API]
    api = subprocess.Popen(command, cwd=tmp_path, env=os.environ | known, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: is_served(f"http://127.0.0.1:{port}/health"), timeout=15, what="the API answers, slowly")
    api.terminate()
    ended_at = time.monotonic()
    _, log = api.communicate(timeout=10)
    assert time.monotonic() - ended_at < 5
    assert any("grind_the_beans" in line["stack"] for line in lines_of(log))


def is_served(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310  # http, as above
            return True
    except OSError:  # not listening yet
        return False
