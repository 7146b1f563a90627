"""Ever more callers at once, until something gives: what, at how many, and what the machine was busy with. A command.

    python -m tests.benchmarks.load [--bot tone] [--step 4] [--seconds 10] [--most 60]

Each step adds callers, who stay. A step holds when its callers heard the agent within two seconds, none was lost, no
agent missed a heartbeat, nobody heard gaps in the tone, and the API was quick; the run goes on until one fails,
and says which. Prints a table in Markdown. Callers share the machine's cores with all that serves them.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from backend.common import keys
from backend.common.limits import Limits
from tests.benchmarks import costs
from tests.benchmarks.callers import Callers, Placed
from tests.benchmarks.documents import table
from tests.benchmarks.figures import percentile
from tests.benchmarks.systems import Greenroom, a_livekit
from tests.commands import run_command
from tests.livekit_server import LiveKitServer

SLOW_MS, SLOW_ANSWER_MS = 2_000, 250
MISSED_SECONDS = 4.0
"""Since an agent's last heartbeat, of which one comes every two seconds."""
GAPS_PER_MINUTE = 1.0
"""Of a call, of 60 ms and more: what a caller begins to notice."""
PATIENCE_SECONDS = 20.0
LOOK_SECONDS = 0.5


@dataclass
class Step:
    """What was seen while so many callers were there."""

    callers: int
    calls: list[Placed] = field(default_factory=list)
    """Those who came in this step."""
    latest_beat: float = 0.0
    seconds: float = 0.0
    gaps: int | None = None
    """None of a bot that pauses by itself."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Percent of a core, by program."""

    async def failures(self) -> dict[str, str]:
        """What gave, and how far."""
        heard = [await call.heard for call in self.calls]
        found = [row for row in heard if row]
        checks = {
            "calls lost": (len(heard) - len(found), 0, "{:.0f}"),
            "first sound, p95": (_p95(found, "firstSound"), SLOW_MS, "{:.0f} ms"),
            "API's answer, p95": (_p95(found, "answered"), SLOW_ANSWER_MS, "{:.0f} ms"),
            "oldest heartbeat": (self.latest_beat, MISSED_SECONDS, "{:.1f} s"),
            "gaps per minute of a call": (self.gaps_per_minute or 0, GAPS_PER_MINUTE, "{:.1f}"),
        }
        return {what: text.format(value) for what, (value, limit, text) in checks.items() if value > limit}

    @property
    def gaps_per_minute(self) -> float | None:
        """Of 60 ms and more, in one call."""
        if self.gaps is None:
            return None
        return self.gaps * 60 / (self.seconds * self.callers) if self.seconds else 0.0

    async def cells(self) -> list[str]:
        """One row of the table."""
        found = [row for call in self.calls if (row := await call.heard)]
        lost = len(self.calls) - len(found)
        figures = [
            f"{_p95(found, 'answered'):.0f}",
            f"{_p95(found, 'connected'):.0f}",
            f"{_p95(found, 'firstSound'):.0f}",
        ]
        programs = ", ".join(f"{name} {used:.0f}" for name, used in sorted(self.cpu.items(), key=lambda item: -item[1]))
        beat = f"{self.latest_beat:.1f}"
        gaps = "-" if self.gaps_per_minute is None else f"{self.gaps_per_minute:.1f}"
        return [str(self.callers), str(lost), *figures, beat, gaps, programs]


HEAD = (
    "callers",
    "lost",
    "answer p95, ms",
    "connected p95",
    "first sound p95",
    "oldest beat, s",
    "gaps/min",
    "% of a core",
)


class Load:
    """One ramp."""

    def __init__(self, system: Greenroom, callers: Callers, livekit_pid: int, *, is_steady: bool) -> None:
        self._system, self._callers = system, callers
        self._pids = system.roots() | {"livekit": livekit_pid, "callers": callers.pid}
        self._redis = system.redis()
        self._calls: list[Placed] = []
        self._is_steady = is_steady

    async def climb(self, *, step: int, seconds: float, most: int) -> list[Step]:
        """Add ``step`` callers every so many seconds until something gives."""
        done: list[Step] = []
        while len(self._calls) < most:
            done.append(await self._step(step, seconds))
            failures = await done[-1].failures()
            say(" | ".join(await done[-1].cells()))
            if failures:
                say(f"gives at {len(self._calls)} callers: {failures}")
                break
        for call in self._calls:
            self._callers.hang_up(call)
        await asyncio.gather(*(call.over for call in self._calls))
        return done

    async def _step(self, count: int, seconds: float) -> Step:
        began, before = time.monotonic(), self._cpu()
        gaps = sum(len(call.gaps) for call in self._calls)
        step = Step(callers=len(self._calls) + count)
        pause = seconds / 2 / count  # in the second half of a step nobody comes
        for _ in range(count):
            step.calls += self._callers.place(self._system.url, stay=3_600, patience=PATIENCE_SECONDS, is_light=True)
            await self._look(step, pause)
        self._calls += step.calls
        await asyncio.gather(*(call.heard for call in step.calls))
        await self._look(step, began + seconds - time.monotonic())
        step.seconds = time.monotonic() - began
        if self._is_steady:
            step.gaps = sum(len(call.gaps) for call in self._calls) - gaps
        step.cpu = {name: (used - before[name]) / step.seconds * 100 for name, used in self._cpu().items()}
        return step

    async def _look(self, step: Step, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(min(LOOK_SECONDS, max(0.0, until - time.monotonic())))
            step.latest_beat = max(step.latest_beat, await asyncio.to_thread(self._oldest_beat))

    def _oldest_beat(self) -> float:
        """Seconds since the heartbeat that is longest ago: a lease says when it ends."""
        seconds, micros = self._redis.time()
        leases = self._redis.zrange(keys.DEADLINES, 0, -1, withscores=True)
        ends = [at for name, at in leases if name.startswith("agent:")]
        now_ms = seconds * 1000 + micros / 1000
        return max(((now_ms - (end - Limits().lease)) / 1000 for end in ends), default=0.0)

    def _cpu(self) -> dict[str, float]:
        return {name: costs.cpu_seconds(pid) for name, pid in self._pids.items()}


def _p95(rows: list[dict[str, Any]], stage: str) -> float:
    return percentile([(row[stage] - row["began"]) * 1000 for row in rows], 95) if rows else 0.0


@contextmanager
def running(bot: str, most: int) -> Iterator[tuple[Greenroom, LiveKitServer]]:
    """The whole product and a LiveKit server, for as long as the block."""
    with ExitStack() as stack:
        livekit, port, _ = stack.enter_context(a_livekit())
        # Nobody is asked whether they are still there: these callers say nothing.
        silence = {"SILENCE_ASK": "1800", "SILENCE_END": "3600"}
        more = {"AGENT_BOT": bot, "VOICE": "demo", "MAX_BOTS": str(most + 10), "PREWARM_POOL_MAX": "16", **silence}
        system = Greenroom("in the room", livekit, port, **more)
        stack.callback(system.stop)
        system.start()
        yield system, livekit


async def measure(system: Greenroom, livekit: LiveKitServer, options: argparse.Namespace) -> list[Step]:
    """Climb, and print the table."""
    async with Callers() as callers:
        load = Load(system, callers, livekit.pid, is_steady=options.bot == "tone")
        done = await load.climb(step=options.step, seconds=options.seconds, most=options.most)
        print("\n".join(table(HEAD, [await step.cells() for step in done])))  # noqa: T201  # its face
        print(f"\n{await done[-1].failures() or 'nothing gave'}")  # noqa: T201
    return done


def say(line: str) -> None:
    """Show what is being done."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)  # noqa: T201  # its face


def main() -> None:
    """Read the command line and climb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bot", default="tone", choices=("tone", "voice"))
    parser.add_argument("--step", type=int, default=4, help="callers who come in one step")
    parser.add_argument("--seconds", type=float, default=10, help="of one step")
    parser.add_argument("--most", type=int, default=60, help="callers in all")
    options = parser.parse_args()
    say(f"{os.cpu_count()} cores, bot {options.bot}")
    with running(options.bot, options.most) as (system, livekit):
        say(f"agents: launcher {system.agents_root}, programs {system.roots()}, livekit {livekit.pid}")
        asyncio.run(measure(system, livekit, options))


if __name__ == "__main__":
    run_command(main)
