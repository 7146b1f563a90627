"""How long a newcomer waits: for the product to start, for an answer, for the first sound. A command, not a test.

    python -m tests.benchmarks.greeting [--calls 20] [--bot voice|tone]

Starts the whole product (embedded servers, a warm pool), places calls one after the other with a
real rtc client, and prints a table in Markdown. Everything runs on this machine and shares its cores.
"""

import argparse
import asyncio
import os
import platform
import sys
import time
from datetime import UTC, datetime
from typing import Any

from backend.caller.caller import Caller
from backend.caller.errors import CallFailedError
from backend.caller.rest import Greenroom
from backend.caller.stages import Stage, Stages, spread
from tests.acceptance.house import House
from tests.waiting import wait_until

SOUND_SECONDS = 12.0


async def call(greenroom: Greenroom) -> Stages:
    """Place one call, wait for the first sound, end it."""
    async with Caller(greenroom) as caller:
        started = await caller.start(userName="benchmark")
        await caller.connect()
        try:
            await caller.first_sound(within=SOUND_SECONDS)
        except CallFailedError as error:
            print(f"lost: {started.session_id}: {error}", file=sys.stderr)  # noqa: T201  # to be looked for in the logs
    return caller.stages


async def calls(house: House, count: int) -> list[Stages]:
    """Place calls one after the other, each on a pool that is full again."""
    placed = []
    async with Greenroom(house.url) as greenroom:
        for _ in range(count):
            await asyncio.to_thread(wait_until, house.is_warm, timeout=30, what="the pool is full again")
            placed.append(await call(greenroom))
    return placed


def row(name: str, values: list[float | None]) -> str:
    """One line of the table: median, p95, worst."""
    found = spread(values)
    return f"| {name} | {found.median:.0f} | {found.p95:.0f} | {found.worst:.0f} |" if found else f"| {name} | | | |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20, help="calls to place, one after the other")
    parser.add_argument("--bot", default="voice", choices=("voice", "tone"), help="what the agents run")
    parser.add_argument("--keep", action="store_true", help="leave the logs where they are")
    options: Any = parser.parse_args()
    house = House(AGENT_BOT=options.bot, LOG_LEVEL="INFO")
    try:
        began = time.monotonic()
        house.start()
        start_seconds = time.monotonic() - began
        placed = asyncio.run(calls(house, options.calls))
    finally:
        house.stop() if options.keep else house.discard()
    heard = [stages.reached_ms.get(Stage.FIRST_SOUND) for stages in placed]
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, bot {options.bot}, "
        f"{len(placed)} calls, {heard.count(None)} lost; "
        f"start of everything to two warm agents: {start_seconds:.1f} s",
        "",
        "| ms | median | p95 | worst |",
        "|---|---|---|---|",
        row("POST to answer", [stages.reached_ms.get(Stage.ANSWERED) for stages in placed]),
        row("POST to caller connected", [stages.reached_ms.get(Stage.CONNECTED) for stages in placed]),
        row("POST to first sound heard", heard),
        row(
            "caller connected to first sound",
            [stages.between_ms(Stage.CONNECTED, Stage.FIRST_SOUND) for stages in placed],
        ),
    ]
    print("\n".join(lines))  # noqa: T201  # this is its output


if __name__ == "__main__":
    main()
