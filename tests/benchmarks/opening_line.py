"""What a remembered opening line saves the caller: calls with it and without it, in turn. A command, not a test.

    python -m tests.benchmarks.opening_line [--calls 12]

Two houses with emulated vendors, one that keeps opening lines and one that does not; prints a table in Markdown.
"""

import argparse
import asyncio
from contextlib import ExitStack
from typing import Any

from backend.caller.caller import Caller
from backend.caller.rest import Greenroom
from backend.caller.stages import Stage, Stages, spread
from tests.acceptance.house import House
from tests.benchmarks.emulated import vendors
from tests.waiting import wait_until

SOUND_SECONDS = 12.0
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


def house(addresses: dict[str, str], megabytes: int) -> House:
    """Start a product with these vendors."""
    memory = {"OPENING_LINE_CACHE_FOR": "inworld", "OPENING_LINE_CACHE_MB": str(megabytes)}
    made = House(LOG_LEVEL="INFO", PREWARM_POOL_SIZE="1", **addresses, **memory)
    made.start()
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=12, help="calls to place with each")
    options: Any = parser.parse_args()
    with ExitStack() as stack:
        addresses, houses = stack.enter_context(vendors()), {}
        for name, megabytes in (("remembered", 64), ("asked for", 0)):
            houses[name] = house(addresses, megabytes)
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
