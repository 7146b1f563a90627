"""What one call costs in CPU time and memory, and what a warm agent costs. A command, not a test.

    python -m tests.benchmarks.cost [--voice vendors|demo|tone] [--seconds 20] [--warm 4]

Starts the whole product (embedded servers, a warm pool) and places one call with a real rtc client.
Only the agent's own process counts; what it starts (the demo voice's two) has a column of its own.
The caller and the emulators of the vendors run in this process, the servers in theirs. CPU time is what the
kernel charged, so other work on the machine disturbs it little. Linux only.
"""

import argparse
import asyncio
import os
import platform
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import psutil

from tests.acceptance.house import House
from tests.benchmarks import usage
from tests.benchmarks.usage import Usage
from tests.fakes.fake_caller import FakeCaller
from tests.fakes.fake_vendors import FakeVendors
from tests.waiting import wait_until

MONOLOGUE = (
    "This is a long story about a small house by the sea and about the people who lived in it for many years "
    "and who went down to the water every morning to look for boats that never came and who then went back up "
    "the hill to drink their tea and to tell each other the same old stories again and again until it was dark "
)
"""Without a stop, so that nobody takes a pause for its end; 20 s."""
SETTLED_SECONDS = 5.0
"""An agent that has just started, and a call that has just begun, do things that they do once."""
KEYS = {"ASSEMBLY_API_KEY": "a-key", "GROQ_API_KEY": "a-key", "INWORLD_API_KEY": "a-key"}


async def measure(process: psutil.Process, seconds: float) -> Usage:
    """Let a process do what it does for so long, and say what it used."""
    before = usage.read(process)
    await asyncio.sleep(seconds)
    return usage.since(before, process)


def find_launcher() -> psutil.Process:
    """Find the one launcher below this process."""
    below = psutil.Process().children(recursive=True)
    return next(process for process in below if "backend.agent.launcher" in process.cmdline())


async def warm(count: int, seconds: float) -> list[str]:
    """Measure the pool while nobody calls: each agent, and the tree."""
    await asyncio.sleep(SETTLED_SECONDS)
    launcher = await asyncio.to_thread(find_launcher)
    agents = launcher.children()
    before = [usage.read(agent) for agent in agents]
    await asyncio.sleep(seconds)
    used = [usage.since(reading, agent) for reading, agent in zip(before, agents, strict=True)]
    return [row(f"warm {number}", one) for number, one in enumerate(used, 1)] + [
        f"| launcher and {count} warm | | | | | | | {usage.tree_mib(launcher):.0f} |"
    ]


async def talked(house: House, seconds: float, *, has_ears: bool) -> list[str]:
    """Place one call and measure it: the agent talks, nobody does, the caller does."""
    wish = {"userName": "benchmark", "openingLine": MONOLOGUE + MONOLOGUE[:180]}
    started = await asyncio.to_thread(house.post, "/orchestrator/session/start", wish)
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        await caller.sound(timeout=20)
        agent = await asyncio.to_thread(agent_of, house, started["sessionId"])
        rows = [row("agent talks", await measure(agent, seconds))]
        if has_ears:
            await caller.silence(seconds=3.0, timeout=60)
            rows.append(row("nobody talks", await measure(agent, seconds)))
        telling = asyncio.ensure_future(caller.say(MONOLOGUE + MONOLOGUE))
        await asyncio.sleep(SETTLED_SECONDS)  # its speech is made by a process, and heard by now
        rows.append(row("caller talks", await measure(agent, min(seconds, 20.0))))
        telling.cancel()
    await asyncio.to_thread(house.post, "/orchestrator/session/end", {"sessionId": started["sessionId"]})
    return rows


def agent_of(house: House, session_id: str) -> psutil.Process:
    """Find the process of a session's agent."""

    def pid() -> int | None:
        shown: int | None = house.get(f"/orchestrator/session/{session_id}")["agentPid"]
        return shown

    return psutil.Process(wait_until(pid, what="the session has its agent"))


def row(name: str, used: Usage) -> str:
    """One line of the table."""
    return (
        f"| {name} | {used.cpu:.1f} | {used.main:.1f} | {used.children:.1f} | {used.switches_per_second:.0f} "
        f"| {used.threads} | {used.own_mib:.0f} | {used.share_mib:.0f} |"
    )


async def run(options: Any) -> list[str]:
    """Start everything, measure, stop everything; return the table."""
    variables = {
        "LOG_LEVEL": "INFO",
        "PREWARM_POOL_SIZE": str(options.warm),
        "SILENCE_ASK": "500",
        "SILENCE_END": "600",
    }
    async with AsyncExitStack() as stack:
        if options.voice == "vendors":
            vendors = await stack.enter_async_context(FakeVendors())
            urls = {
                "ASSEMBLY_URL": vendors.assembly_url,
                "GROQ_URL": vendors.groq_url,
                "INWORLD_URL": vendors.inworld_url,
            }
            variables |= KEYS | urls
        variables |= {"AGENT_BOT": "tone"} if options.voice == "tone" else {}
        house = House(**variables)
        stack.push_async_callback(asyncio.to_thread, house.discard)
        await asyncio.to_thread(house.start)
        rows = await warm(options.warm, options.seconds) if options.warm else []
        return rows + await talked(house, options.seconds, has_ears=options.voice != "tone")
    raise AssertionError("the stack suppresses nothing")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voice", default="vendors", choices=("vendors", "demo", "tone"), help="what the agents run")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each state is measured")
    parser.add_argument("--warm", type=int, default=4, help="warm agents; 2 or more")
    options: Any = parser.parse_args()
    rows = asyncio.run(run(options))
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, voice {options.voice}, {options.seconds:.0f} s each",
        "",
        "| state | CPU % of a core | event loop's thread | children | switches/s | threads | own MiB | PSS MiB |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))  # noqa: T201  # this is its output


if __name__ == "__main__":
    main()
