"""Programs taken anew under load, again and again, and what became of every call. A command.

    python -m tests.benchmarks.restarts [--rounds 20] [--stay 4] [--every 1.5] [--actions worker,api,launcher]

A few callers stay in their calls all the time; others come every so many seconds, call, and go. In each round every
action is done through supervisord, and the next one begins when the program is back. Prints a table in Markdown;
the exit code is 1 when a call was lost.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.benchmarks.callers import Callers, Placed
from tests.benchmarks.figures import percentile
from tests.benchmarks.load import running, say
from tests.benchmarks.systems import Greenroom
from tests.commands import run_command
from tests.waiting import wait_until_async

BACK_SECONDS = 190.0
"""Longer than the new code may take to be tried."""
QUIET_SECONDS = 1.0
"""Between two actions."""
LONG_GAP_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Action:
    """One way to take a program anew."""

    words: tuple[str, ...]
    """What supervisorctl is told."""
    program: str
    is_back: str
    """What its log says when it is back; '' when supervisorctl itself waits for it."""


ACTIONS = {
    "worker": Action(words=("restart", "worker"), program="worker", is_back=""),
    "api": Action(words=("signal", "HUP", "api"), program="api", is_back="API_KEYS is not set"),
    "launcher": Action(words=("signal", "HUP", "launcher"), program="launcher", is_back="launcher is ready"),
    "api-restart": Action(words=("restart", "api"), program="api", is_back="API_KEYS is not set"),
}


@dataclass
class Seen:
    """What was seen while one kind of action was under way."""

    times: int = 0
    seconds: list[float] = field(default_factory=list)
    """Each action, until the program was back."""
    calls: list[Placed] = field(default_factory=list)
    """Those who came meanwhile."""


class Restarts:
    """One run."""

    def __init__(self, system: Greenroom, callers: Callers, *, stay: float, every: float) -> None:
        self._system, self._callers, self._stay, self._every = system, callers, stay, every
        self._now = Seen()

    async def run(self, names: list[str], *, rounds: int, staying: int) -> tuple[dict[str, Seen], list[Placed]]:
        """Do every action in each round; returns what was seen, and the calls of those who stayed all the time."""
        seen = {name: Seen() for name in names}
        stayed = self._callers.place(self._system.url, count=staying, stay=3_600, patience=30, is_light=True)
        await asyncio.gather(*(call.heard for call in stayed))
        coming = asyncio.create_task(self._come())
        for number in range(rounds):
            for name in names:
                self._now = seen[name]
                await self._do(ACTIONS[name])
                say(f"round {number + 1}: {name} was back after {self._now.seconds[-1]:.1f} s")
        coming.cancel()
        for call in (call for one in seen.values() for call in one.calls):
            await call.over
        for call in stayed:
            self._callers.hang_up(call)
            await call.over
        return seen, stayed

    async def _come(self) -> None:
        while True:
            self._now.calls += self._callers.place(self._system.url, stay=self._stay, patience=30, is_light=True)
            await asyncio.sleep(self._every)

    async def _do(self, action: Action) -> None:
        log = self._system.house.run_dir / "logs" / f"{action.program}.log"
        said: Callable[[], int] = lambda: log.read_text(errors="replace").count(action.is_back)  # noqa: E731
        before, began = said(), time.monotonic()
        await asyncio.to_thread(self._system.house.control, *action.words)
        if action.is_back:
            await wait_until_async(lambda: said() > before, timeout=BACK_SECONDS, what=f"{action.program} is back")
        self._now.times += 1
        self._now.seconds.append(time.monotonic() - began)
        await asyncio.sleep(QUIET_SECONDS)


HEAD = (
    "taken anew",
    "times",
    "back after, p50 / worst",
    "calls begun meanwhile",
    "lost",
    "first sound, p50 / p95 / worst",
)


async def cells(name: str, seen: Seen) -> tuple[str, ...]:
    """One row of the table."""
    heard = [row for call in seen.calls if (row := await call.heard)]
    sound = [(row["firstSound"] - row["began"]) * 1000 for row in heard]
    figures = f"{percentile(sound, 50):.0f} / {percentile(sound, 95):.0f} / {max(sound):.0f} ms" if sound else ""
    back = f"{percentile(seen.seconds, 50):.1f} / {max(seen.seconds):.1f} s"
    return name, str(seen.times), back, str(len(seen.calls)), str(len(lost(seen.calls))), figures


def lost(calls: list[Placed]) -> list[Placed]:
    """Those that did not come to the end that they were to have; all are over."""
    return [call for call in calls if call.over.result() is None]


async def measure(system: Greenroom, options: argparse.Namespace) -> bool:
    """Run it, print the table; whether no call was lost."""
    names = options.actions.split(",")
    async with Callers() as callers:
        restarts = Restarts(system, callers, stay=options.stay, every=options.every)
        seen, stayed = await restarts.run(names, rounds=options.rounds, staying=options.staying)
    rows = [HEAD, ("---",) * len(HEAD), *[await cells(name, one) for name, one in seen.items()]]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))  # noqa: T201  # its face
    with system.redis() as client:
        failovers = client.hget("fleet:counts", "failovers") or 0
    gaps = [gap for call in stayed for gap in call.gaps if gap["missing"] >= LONG_GAP_SECONDS]
    away = [
        call.why_lost for call in [*stayed, *(call for one in seen.values() for call in one.calls)] if call.why_lost
    ]
    print(  # noqa: T201
        f"\nStayed all the time: {len(stayed)}, lost {len(lost(stayed))}; gaps of {LONG_GAP_SECONDS:g} s and more "
        f"in their sound: {len(gaps)}; failovers: {failovers}. Why calls were lost: {sorted(set(away)) or 'none was'}"
    )
    return not away


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bot", default="tone", choices=("tone", "voice"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--staying", type=int, default=3, help="callers who stay all the time")
    parser.add_argument("--stay", type=float, default=4, help="seconds that the others stay")
    parser.add_argument("--every", type=float, default=1.5, help="seconds between two of the others")
    parser.add_argument("--actions", default="worker,api,launcher", help=f"of {', '.join(ACTIONS)}")
    options = parser.parse_args()
    with running(options.bot, most=20) as (system, _):
        is_whole = asyncio.run(measure(system, options))
    sys.exit(0 if is_whole else 1)


if __name__ == "__main__":
    run_command(main)
