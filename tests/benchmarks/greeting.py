"""How long a newcomer waits: for the product to start, for an answer, for the first sound. A command, not a test.

    python -m tests.benchmarks.greeting [--calls 20] [--bot voice|tone]

Starts the whole product (embedded servers, a warm pool), places calls one after the other with a
real rtc client, and prints a table in Markdown. Everything runs on this machine and shares its cores.
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2 as httpx

from tests.acceptance.house import House
from tests.fakes.fake_caller import FakeCaller
from tests.waiting import wait_until

SOUND_SECONDS = 12.0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One call; milliseconds from the moment before the POST, except ``answer``, which is the POST's own time."""

    answer: float
    connected: float
    heard: float

    @property
    def after_connect(self) -> float:
        """What the agent adds to the caller's own connect."""
        return self.heard - self.connected


async def call(client: httpx.AsyncClient) -> Timing | None:
    """Place one call, wait for the first sound, end it; None when no sound came."""
    began = time.monotonic()
    answer = await client.post("/orchestrator/session/start", json={"userName": "benchmark"})
    answered = time.monotonic()
    started = answer.raise_for_status().json()
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        connected = time.monotonic()
        try:
            heard = await caller.sound(timeout=SOUND_SECONDS)
        except TimeoutError:
            print(f"lost: {started['sessionId']}", file=sys.stderr)  # noqa: T201  # to be looked for in the logs
            return None
        finally:
            await client.post("/orchestrator/session/end", json={"sessionId": started["sessionId"]})
    return Timing(answer=(answered - began) * 1000, connected=(connected - began) * 1000, heard=(heard - began) * 1000)


async def calls(house: House, count: int) -> list[Timing | None]:
    """Place calls one after the other, each on a pool that is full again."""
    timings = []
    async with httpx.AsyncClient(base_url=house.url, timeout=10) as client:
        for _ in range(count):
            await asyncio.to_thread(wait_until, house.is_warm, timeout=30, what="the pool is full again")
            timings.append(await call(client))
    return timings


def row(name: str, values: list[float]) -> str:
    """One line of the table: median, p95, worst."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return f"| {name} | {statistics.median(ordered):.0f} | {p95:.0f} | {ordered[-1]:.0f} |"


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
    timings = [timing for timing in placed if timing]
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, bot {options.bot}, "
        f"{len(placed)} calls, {len(placed) - len(timings)} lost; "
        f"start of everything to two warm agents: {start_seconds:.1f} s",
        "",
        "| ms | median | p95 | worst |",
        "|---|---|---|---|",
        row("POST to answer", [timing.answer for timing in timings]),
        row("POST to caller connected", [timing.connected for timing in timings]),
        row("POST to first sound heard", [timing.heard for timing in timings]),
        row("caller connected to first sound", [timing.after_connect for timing in timings]),
    ]
    print("\n".join(lines))  # noqa: T201  # this is its output


if __name__ == "__main__":
    main()
