"""What a remembered opening line saves the caller: calls with it and without it, in turn. A command, not a test.

    python -m tests.benchmarks.opening_line [--calls 12]

Two houses with emulated vendors, one that keeps opening lines and one that does not; prints a table in Markdown.
"""

import argparse
import asyncio
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from backend.caller.caller import Caller
from backend.caller.rest import Greenroom
from backend.caller.stages import Stage, Stages, spread
from tests.acceptance.house import House
from tests.valkey_server import free_port
from tests.waiting import wait_until

SOUND_SECONDS = 12.0
CONNECT_SECONDS, SPEECH_SECONDS = 0.15, 0.25
"""What the vendors take to be connected, and from a text to its first sound: about what real ones do."""
OPENING = "Hello there, how can I help you today?"


async def call(house: House) -> Stages:
    """Place one call on a pool that is full, wait for the first sound, end it."""
    await asyncio.to_thread(wait_until, house.is_warm, timeout=30, what="the pool is full")
    async with Greenroom(house.url) as greenroom, Caller(greenroom) as caller:
        await caller.start(userName="benchmark", openingLine=OPENING)
        await caller.connect()
        await caller.first_sound(within=SOUND_SECONDS)
    return caller.stages


async def calls(houses: dict[str, House], count: int) -> dict[str, list[Stages]]:
    """Place calls in turn; the first of each house, which fills its memory, is left out."""
    placed: dict[str, list[Stages]] = {name: [] for name in houses}
    for _ in range(count + 1):
        for name, house in houses.items():
            placed[name].append(await call(house))
    return {name: stages[1:] for name, stages in placed.items()}


def house(port: int, megabytes: int) -> House:
    """Start a product whose vendors are on this port."""
    keys = dict.fromkeys(("ASSEMBLY_API_KEY", "GROQ_API_KEY", "INWORLD_API_KEY"), "a-key")
    urls = {
        "ASSEMBLY_URL": f"ws://127.0.0.1:{port}/v3/ws",
        "GROQ_URL": f"http://127.0.0.1:{port}/openai/v1",
        "INWORLD_URL": f"ws://127.0.0.1:{port}/tts/v1/voice:streamBidirectional",
    }
    memory = {"OPENING_LINE_CACHE_FOR": "inworld", "OPENING_LINE_CACHE_MB": str(megabytes)}
    made = House(LOG_LEVEL="INFO", PREWARM_POOL_SIZE="1", **keys, **urls, **memory)
    made.start()
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=12, help="calls to place with each")
    options: Any = parser.parse_args()
    port = free_port()
    program = (sys.executable, "-m", "tests.fakes.fake_vendors", str(port), str(CONNECT_SECONDS), str(SPEECH_SECONDS))
    with ExitStack() as stack:
        emulator = stack.enter_context(subprocess.Popen(program))
        stack.callback(emulator.kill)
        houses = {}
        for name, megabytes in (("remembered", 64), ("asked for", 0)):
            houses[name] = house(port, megabytes)
            stack.callback(houses[name].discard)
        placed = asyncio.run(calls(houses, options.calls))
    lines = ["| opening line | connected to first sound, ms: median | p95 | worst |", "|---|---|---|---|"]
    for name, stages in placed.items():
        found = spread([stage.between_ms(Stage.CONNECTED, Stage.FIRST_SOUND) for stage in stages])
        assert found, "every call was heard"
        lines.append(f"| {name} | {found.median:.0f} | {found.p95:.0f} | {found.worst:.0f} |")
    print("\n".join(lines))  # noqa: T201  # this is its output


if __name__ == "__main__":
    main()
