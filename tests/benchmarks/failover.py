"""How long a caller hears nothing when the agent in the call is killed. A command, not a test.

    python -m tests.benchmarks.failover [--calls 20] [--dry]

Kills each agent after its greeting, with SIGKILL, and waits for the first words of the next one; writes its table into
docs/reliability.md.
"""

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from backend.caller.caller import Caller
from backend.caller.rest import Greenroom
from backend.caller.stages import spread
from backend.local.steps import say
from tests.acceptance.house import House
from tests.benchmarks.documents import DOCS, machine, table
from tests.benchmarks.opening_line import CONNECT_SECONDS, SPEECH_SECONDS
from tests.valkey_server import free_port
from tests.waiting import wait_until, wait_until_async

PAGE: Path = DOCS / "reliability.md"
BEGIN, END = "<!-- failover: written by python -m tests.benchmarks.failover -->", "<!-- failover: end -->"
SOUND_SECONDS = 15.0
TARGET_MS = 1_000
HEAD = ("voice", "kills", "median, ms", "p95, ms", "worst, ms", "connection lost")


async def kill_in_call(house: House) -> tuple[float, bool]:
    """Place a call, kill its agent in the quiet after the greeting; milliseconds to the next sound, and if it held."""
    await asyncio.to_thread(wait_until, house.is_warm, timeout=30, what="the pool is full")
    async with Greenroom(house.url) as greenroom, Caller(greenroom) as caller:
        started = await caller.start(userName="benchmark", openingLine="Hello.")
        await caller.connect()
        await caller.first_sound(within=SOUND_SECONDS)
        await caller.participant.ear.silence(seconds=0.7)
        await wait_until_async(lambda: asyncio.to_thread(house.is_warm), timeout=30, what="a successor is warm")
        pid = (await greenroom.show(started.session_id))["agentPid"]
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        heard_at = await asyncio.wait_for(caller.participant.ear.sound(since=killed_at), SOUND_SECONDS)
        return (heard_at - killed_at) * 1000, caller.participant.is_out.is_set()


def vendors() -> tuple["subprocess.Popen[bytes]", dict[str, str]]:
    """Start the vendors' emulators; returns them, and the variables that lead to them."""
    port = free_port()
    command = [sys.executable, "-m", "tests.fakes.fake_vendors", str(port), str(CONNECT_SECONDS), str(SPEECH_SECONDS)]
    keys = dict.fromkeys(("ASSEMBLY_API_KEY", "GROQ_API_KEY", "INWORLD_API_KEY"), "a-key")
    urls = {
        "ASSEMBLY_URL": f"ws://127.0.0.1:{port}/v3/ws",
        "GROQ_URL": f"http://127.0.0.1:{port}/openai/v1",
        "INWORLD_URL": f"ws://127.0.0.1:{port}/tts/v1/voice:streamBidirectional",
    }
    return subprocess.Popen(command), keys | urls


async def measure(house: House, calls: int) -> list[tuple[float, bool]]:
    """Kill so many agents, one after the other."""
    return [await kill_in_call(house) for _ in range(calls)]


def row(name: str, kills: list[tuple[float, bool]]) -> list[str]:
    """One line of the table."""
    found = spread([ms for ms, _ in kills])
    assert found, "every successor was heard"
    times = [f"{ms:.0f}" for ms in (found.median, found.p95, found.worst)]
    return [name, str(len(kills)), *times, str(sum(lost for _, lost in kills))]


def write(lines: list[str]) -> None:
    """Put the table between its markers."""
    pattern, text = re.escape(BEGIN) + ".*?" + re.escape(END), "\n".join(lines)
    page = PAGE.read_text(encoding="utf-8")
    written = re.sub(pattern, lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page, flags=re.DOTALL)
    PAGE.write_text(written, encoding="utf-8")


def main() -> None:
    """Measure both voices, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--dry", action="store_true", help="leave docs/reliability.md as it is")
    wanted = parser.parse_args()
    emulators, addresses = vendors()
    voices = {"vendors, emulated": addresses, "demo": {}}
    rows = []
    with ExitStack() as stack:
        stack.callback(emulators.terminate)
        for name, variables in voices.items():
            house = House(LOG_LEVEL="INFO", **variables)
            stack.callback(house.discard)
            house.start()
            rows.append(row(name, asyncio.run(measure(house, wanted.calls))))
            say(" | ".join(rows[-1]))
            house.stop()
    lines = [*table(HEAD, rows), "", f"{machine()}; the emulators take {CONNECT_SECONDS * 1000:.0f} ms to connect and "]
    lines[-1] += f"{SPEECH_SECONDS * 1000:.0f} ms from a text to its first sound."
    if not wanted.dry:
        write(lines)
    sys.exit(any(float(cells[3]) > TARGET_MS for cells in rows))


if __name__ == "__main__":
    main()
