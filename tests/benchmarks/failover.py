"""How long a caller hears nothing when the agent in the call is killed. A command, not a test.

    python -m tests.benchmarks.failover [--calls 20] [--dry]

Kills each agent after its greeting, with SIGKILL, and waits for the first words of the next one; writes its table into
docs/reliability.md.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from contextlib import ExitStack

from backend.caller.caller import Caller
from backend.caller.rest import Greenroom
from backend.caller.stages import spread
from backend.local.steps import say
from tests.acceptance.house import House
from tests.benchmarks.documents import DOCS, Part, machine, table
from tests.benchmarks.emulated import CONNECT_SECONDS, SPEECH_SECONDS, vendors
from tests.waiting import wait_until, wait_until_async

PART = Part(page=DOCS / "reliability.md", name="failover", command="python -m tests.benchmarks.failover")
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


async def measure(house: House, calls: int) -> list[tuple[float, bool]]:
    """Kill so many agents, one after the other."""
    return [await kill_in_call(house) for _ in range(calls)]


def row(name: str, kills: list[tuple[float, bool]]) -> list[str]:
    """One line of the table."""
    found = spread([ms for ms, _ in kills])
    assert found, "every successor was heard"
    times = [f"{ms:.0f}" for ms in (found.median, found.p95, found.worst)]
    return [name, str(len(kills)), *times, str(sum(lost for _, lost in kills))]


def main() -> None:
    """Measure both voices, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--dry", action="store_true", help="leave docs/reliability.md as it is")
    wanted = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        voices = {"vendors, emulated": stack.enter_context(vendors()), "demo": {}}
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
        PART.write("\n".join(lines))
    sys.exit(any(float(cells[3]) > TARGET_MS for cells in rows))


if __name__ == "__main__":
    main()
