"""Greenroom beside its peer, in one run: how long callers wait, and what it costs. A command, not a test.

    python -m tests.benchmarks.bench [--only latency,burst] [--calls 30] [--minutes 3]

One LiveKit server, the same bot (a tone from the first moment) and the same number of warm agents in each system; the
product's own voice beside them. Raw rows go to .run/bench/, the table and the plots to docs/; those of a part only with
``--draw WHOLE.json PART.json``, which draws several runs as one.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from backend.local import livekit as livekit_server
from backend.local.setup import ROOT
from tests.benchmarks import figures, hung, sections
from tests.benchmarks.callers import Callers
from tests.benchmarks.figures import Results
from tests.benchmarks.sections import Bench, Row
from tests.benchmarks.systems import WARM, Greenroom, Peer, System, a_livekit
from tests.commands import run_command
from tests.livekit_server import LiveKitServer

RESULTS = ROOT / ".run" / "bench"
BURSTS = ((8, 3), (50, 1))
"""Callers at once, and how often."""
COST_ROUNDS = 2
SECTIONS = ("memory", "processor", "latency", "burst", "hung", "poisson")


def make_systems(livekit: LiveKitServer, port: int, folder: Path) -> list[System]:
    """All that is compared; LiveKit's webhooks go to the house on ``port``."""
    tone = {"AGENT_BOT": "tone"}
    return [
        Greenroom("in the room", livekit, port, PREWARM_IN_ROOM="true", **tone),
        Greenroom("parked", livekit, PREWARM_IN_ROOM="false", **tone),
        Greenroom("in the room, voice", livekit, PREWARM_IN_ROOM="true", AGENT_BOT="voice", VOICE="demo"),
        Peer("livekit-agents", livekit, folder),
    ]


@contextmanager
def running(names: str) -> Iterator[list[System]]:
    """One LiveKit server and the systems of these names, '' for all; afterwards no process of them is left."""
    with ExitStack() as stack:
        livekit, port, folder = stack.enter_context(a_livekit())
        every = make_systems(livekit, port, folder)
        systems = [system for system in every if system.name in (names.split(",") if names else [system.name])]
        for system in systems:
            say(f"starting {system.name}")
            stack.callback(system.stop)
            system.start()
        yield systems


async def measure(systems: list[System], options: argparse.Namespace, rows: dict[str, list[Row]]) -> None:
    """Run the sections that were asked for, and add their rows."""
    async with Callers() as callers:
        bench = Bench(systems=systems, callers=callers, say=say)
        for system in systems:  # the first call of each is not like the others
            await sections.burst(Bench(systems=[system], callers=callers, say=say), 1, 1)
        ways: dict[str, Callable[[], Awaitable[list[Row]]]] = {
            "memory": lambda: sections.memory(bench),
            "processor": lambda: sections.processor(bench, COST_ROUNDS),
            "latency": lambda: sections.latency(bench, options.calls),
            "hung": lambda: hung.hung(bench),
            "poisson": lambda: sections.poisson(bench, options.minutes),
            # Last: the peer may not have its idle processes again for minutes after it.
            **{f"burst {size}": partial(sections.burst, bench, size, rounds) for size, rounds in BURSTS},
        }
        for name, measure_it in ways.items():
            if name in options.only or name.split()[0] in options.only:
                rows[name] = await measure_it()


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What, when and on what machine; no names of it."""
    arguments = f"--calls {options.calls} --minutes {options.minutes:g}"
    if options.only != list(SECTIONS):
        arguments += f" --only '{','.join(options.only)}'"
    if options.systems:
        arguments += f" --systems '{options.systems}'"
    return {
        "command": f'make bench ARGS="{arguments}"',
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "livekit_server": livekit_server.VERSION,
        "livekit": version("livekit"),
        "warm": WARM,
    }


def is_whole(options: argparse.Namespace) -> bool:
    """Whether a run has all that docs/ shows: what a part left out would be gone from there."""
    return options.only == list(SECTIONS) and not options.systems


def keep(results: Results) -> None:
    """Write the raw rows."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(results, indent=1))
    say(f"raw results: {path.relative_to(ROOT)}\n")


def say(line: str) -> None:
    """Show what is being done, on one line of a terminal."""
    end = "\033[K\r" if sys.stderr.isatty() else "\n"
    print(f"{time.strftime('%H:%M:%S')} {line}", end=end, file=sys.stderr, flush=True)  # noqa: T201  # its face


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--calls", type=int, default=30, help="of each system, one after the other")
    parser.add_argument("--minutes", type=float, default=3, help="of callers who come as they like")
    parser.add_argument("--systems", default="", help="only these, by their names, separated by commas")
    parser.add_argument(
        "--draw",
        type=Path,
        nargs="+",
        default=[],
        help="only draw these results; a later one's sections replace others",
    )
    parser.add_argument("--no-docs", action="store_true", help="leave docs/ as it is")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := {name.split()[0] for name in options.only} - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Measure, keep the raw rows, write the page."""
    options = parse(sys.argv[1:])
    if options.draw:
        runs = [json.loads(path.read_text()) for path in options.draw]
    else:
        runs = [{"about": about(options), "rows": {}}]
        try:
            with running(options.systems) as systems:
                asyncio.run(measure(systems, options, runs[0]["rows"]))
        finally:  # what was measured before an interruption is not lost
            keep(runs[0])
    print(figures.tables(runs))  # noqa: T201  # its face
    if options.no_docs:
        return
    if options.draw or is_whole(options):
        figures.write(runs)
    else:
        say('a part: docs/ is as it was. Together with a whole run: make bench ARGS="--draw WHOLE.json PART.json"\n')


if __name__ == "__main__":
    run_command(main)
