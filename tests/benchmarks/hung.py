"""Agents that hang: a live one and a warm one of each system are frozen; when does the caller hear again?"""

import asyncio
import os
import signal
import time

from tests.benchmarks import costs
from tests.benchmarks.sections import HUNG_SECONDS, Bench, Row
from tests.benchmarks.systems import WARM, System

LOOK_SECONDS = 0.02


async def hung(bench: Bench) -> list[Row]:
    """Freeze one live and one warm agent in each system; all at once, for most of it is waiting."""
    for system in bench.systems:
        await system.settle()
    bench.say(f"hung agents: {HUNG_SECONDS:.0f} s")
    return list(await asyncio.gather(*(_freeze(bench, system) for system in bench.systems)))


async def _freeze(bench: Bench, system: System) -> Row:
    (call,) = bench.callers.place(system.url, stay=HUNG_SECONDS + 10)
    heard = await call.heard
    if heard is None:
        return {"system": system.name, "lost": call.why_lost}
    live = await system.agent_pid(heard["session"])
    await asyncio.sleep(3)  # its successor is warm by now
    warm = next(pid for pid in system.agents() if pid != live)
    known = set(system.agents())
    os.kill(warm, signal.SIGSTOP)
    os.kill(live, signal.SIGSTOP)
    frozen_at = time.monotonic()
    row: Row = {"system": system.name, "live_gone": None, "warm_gone": None, "replaced": None}
    while time.monotonic() < frozen_at + HUNG_SECONDS and None in row.values():
        now = time.monotonic() - frozen_at
        for name, pid in (("live_gone", live), ("warm_gone", warm)):
            if row[name] is None and not costs.is_there(pid):
                row[name] = now
        agents = system.agents()
        if row["replaced"] is None and warm not in agents and len([pid for pid in agents if pid not in known]) > 0:
            row["replaced"] = now if len(agents) >= WARM else None
        await asyncio.sleep(LOOK_SECONDS)
    await asyncio.sleep(3)
    bench.callers.hang_up(call)
    await call.over
    row["silent_seconds"] = max((gap["away"] for gap in call.gaps if gap["at"] > frozen_at), default=None)
    return row
