"""Agents that hang: a live one and a warm one of each system are frozen; when does the caller hear again?"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable
from functools import partial

from tests.benchmarks import costs
from tests.benchmarks.sections import HUNG_SECONDS, Bench, Row
from tests.benchmarks.systems import WARM, System
from tests.waiting import wait_until_async

LOOK_SECONDS = 0.02
STOP_SECONDS = 1.0
"""Until a process that was told to has stopped: nothing but the kernel has a part in it."""


async def hung(bench: Bench) -> list[Row]:
    """Freeze one live and one warm agent in each system; all at once, for most of it is waiting."""
    for system in bench.systems:
        await system.settle()
    bench.say(f"hung agents: {HUNG_SECONDS:.0f} s")
    return list(await asyncio.gather(*(_freeze(bench, system) for system in bench.systems)))


async def _freeze_one(pids: Iterable[int]) -> int:
    """Freeze the first of them that can be: one that ends at this moment would be taken for one that was found out.

    Raises: ProcessLookupError when there is none
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            os.kill(pid, signal.SIGSTOP)
            await wait_until_async(partial(costs.is_stopped, pid), timeout=STOP_SECONDS, what="it has stopped")
            return pid
    raise ProcessLookupError("no agent there that could be frozen")


async def _freeze(bench: Bench, system: System) -> Row:
    (call,) = bench.callers.place(system.url, stay=HUNG_SECONDS + 10)
    heard = await call.heard
    if heard is None:
        return {"system": system.name, "lost": call.why_lost}
    live = await system.agent_pid(heard["session"])
    await asyncio.sleep(3)  # its successor is warm by now
    known = set(system.agents())
    warm = await _freeze_one(pid for pid in system.warm() if pid != live)
    await _freeze_one([live])
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
