"""An agent that runs alone, as a process: its start, its signals, its watchdog and its exit code."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from backend.common.contract import AGENT_IDENTITY
from tests.fakes.fake_caller import FakeCaller
from tests.livekit_server import CALLER, LiveKitServer

COMMAND = (sys.executable, "-m", "backend.agent")
STUCK = """
import asyncio, pathlib, sys, time
from backend.agent.watchdog import Watchdog

async def main():
    dog = Watchdog(pathlib.Path(sys.argv[1]))
    watching = asyncio.ensure_future(dog.stay_watched(lambda: time.monotonic() - 1.5))
    await asyncio.sleep(0)
    time.sleep(60)

asyncio.run(main())
"""


@asynccontextmanager
async def an_agent(server: LiveKitServer, room: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start one, its token on standard input."""
    options = ("--url", server.url, "--session-id", room, "--opening-line", "One, two, three, four, five, six, seven.")
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--token", "-", *options, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    process.stdin.write(server.agent_token(room).encode() + b"\n")
    await process.stdin.drain()
    process.stdin.close()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_signal_ends_a_talking_agent_at_once_and_its_log_holds_no_secret(livekit: LiveKitServer) -> None:
    room = await livekit.create_room()
    async with an_agent(livekit, room) as agent, FakeCaller() as caller:
        await caller.join(livekit.url, livekit.token(room, CALLER))
        await caller.sound(timeout=15)
        agent.send_signal(signal.SIGTERM)
        signalled_at = time.monotonic()
        _, log = await asyncio.wait_for(agent.communicate(), 5)
        assert time.monotonic() - signalled_at < 1.5
        assert agent.returncode == 10
        assert AGENT_IDENTITY not in await livekit.identities(room)
        assert b"the agent ends" in log
        assert not [secret for secret in (b"eyJ", b"One, two") if secret in log]


async def test_an_agent_whose_room_is_deleted_says_so_with_its_exit_code(livekit: LiveKitServer) -> None:
    room = await livekit.create_room()
    async with an_agent(livekit, room) as agent, FakeCaller() as caller:
        await caller.join(livekit.url, livekit.token(room, CALLER))
        await caller.sound(timeout=15)
        await livekit.delete_room(room)
        await asyncio.wait_for(agent.wait(), 5)
        assert agent.returncode == 21


def test_help_names_what_can_be_given() -> None:
    told = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--session-id" in told


def test_a_wrong_address_is_named_before_anything_is_loaded() -> None:
    wrong = [*COMMAND, "--url", "nowhere", "--token", "secret-token", "--session-id", "room"]
    told = subprocess.run(wrong, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "LIVEKIT_URL" in told.stderr
    assert "secret-token" not in told.stderr


def test_a_stuck_loop_is_ended_and_leaves_its_stack(tmp_path: Path) -> None:
    stack = tmp_path / "stack"
    started_at = time.monotonic()
    stuck = subprocess.run([sys.executable, "-c", STUCK, str(stack)], check=False, timeout=15)
    assert stuck.returncode == 1
    assert time.monotonic() - started_at < 8
    assert "main" in stack.read_text()
