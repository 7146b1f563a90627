"""What is measured, section by section. Each takes the systems in turn, so that noise hits all alike, and returns rows.

Every row is a plain dictionary that names its system; times are in milliseconds unless the name says otherwise.
"""

import asyncio
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from tests.benchmarks import costs
from tests.benchmarks.callers import Callers, Placed
from tests.benchmarks.systems import System, end_call
from tests.waiting import wait_until_async

Row = dict[str, Any]

LIVE_CALLS = 4
"""As many as are warm: none of them waits for a fork."""
TALK_SECONDS = 10.0
IDLE_SECONDS = 20.0
POISSON_STAY_SECONDS = 3.0
SHARE_OF_CAPACITY = 0.8
CALIBRATION_CALLS = 8
HUNG_SECONDS = 75.0
"""The peer looks for hung jobs after 60 s of silence."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The systems, those who call them, and what is told while it lasts."""

    systems: list[System]
    callers: Callers
    say: Callable[[str], None]

    async def turns(self, count: int, what: str) -> AsyncIterator[tuple[int, System]]:
        """Every system ``count`` times, in an order drawn anew for each round, each once it has settled."""
        for number in range(count):
            for system in random.sample(self.systems, len(self.systems)):
                self.say(f"{what}: round {number + 1} of {count}, {system.name}")
                await system.settle()
                yield number, system


def stages(system: System, call: Placed, heard: Row | None) -> Row:
    """One call as its caller saw it; ``lost`` says why there was no sound."""
    if heard is None:
        return {"system": system.name, "lost": call.why_lost or "no sound"}
    began, connected = heard["began"], heard["connected"]
    return {
        "system": system.name,
        "answer": (heard["answered"] - began) * 1000,
        "connected": (connected - began) * 1000,
        "own_connect": (connected - heard["answered"]) * 1000,
        "subscribed": (heard["subscribed"] - began) * 1000,
        "heard": (heard["firstSound"] - began) * 1000,
        "after_connect": (heard["firstSound"] - connected) * 1000,
    }


async def latency(bench: Bench, calls: int) -> list[Row]:
    """One call after the other on a full pool; then the end, and when the agent's process is gone."""
    rows = []
    async for _, system in bench.turns(calls, "one call at a time"):
        (call,) = bench.callers.place(system.url, stay=20)
        heard = await call.heard
        row = stages(system, call, heard)
        if heard:
            pid = await system.agent_pid(heard["session"])
            await asyncio.sleep(0.3)
            row["end_to_gone"] = await _end(system, heard["session"], pid)
            await call.over
        rows.append(row)
    return rows


async def _end(system: System, session_id: str, pid: int) -> float:
    began = time.monotonic()
    ending = asyncio.create_task(end_call(system.url, session_id))
    await wait_until_async(lambda: not costs.is_there(pid), timeout=30, what="the agent's process is gone")
    gone = time.monotonic()
    await ending
    return (gone - began) * 1000


async def burst(bench: Bench, size: int, rounds: int) -> list[Row]:
    """Many callers in the same moment, on a pool that is full and much smaller."""
    rows = []
    async for number, system in bench.turns(rounds, f"{size} at once"):
        placed = bench.callers.place(system.url, count=size, stay=5)
        rows += [stages(system, call, await call.heard) | {"round": number} for call in placed]
        await asyncio.gather(*(call.over for call in placed))
    return rows


async def poisson(bench: Bench, minutes: float) -> list[Row]:
    """Callers who come when they like, at 80 % of what this machine can bear; every system gets every n-th of them."""
    rate = await _calls_per_second(bench)
    waiting: set[asyncio.Task[Row]] = set()
    until, number = time.monotonic() + minutes * 60, 0
    began = time.monotonic()
    while time.monotonic() < until:
        await asyncio.sleep(random.expovariate(rate))  # not a secret
        system = bench.systems[number % len(bench.systems)]
        number += 1
        bench.say(f"callers as they come, {rate:.2f}/s: {until - time.monotonic():.0f} s left, {number} calls")
        at = {"at_seconds": time.monotonic() - began, "rate": rate}
        waiting.add(asyncio.create_task(_come_and_go(bench, system, at)))
    return list(await asyncio.gather(*waiting))


async def _come_and_go(bench: Bench, system: System, at: Row) -> Row:
    (call,) = bench.callers.place(system.url, stay=POISSON_STAY_SECONDS)
    row = stages(system, call, await call.heard) | at
    over = await call.over
    return row | ({"concealed_seconds": over["concealed_seconds"]} if over else {})


async def _calls_per_second(bench: Bench) -> float:
    """80 % of the rate at which calls and all that serves them would fill the cores."""
    cores = os.cpu_count() or 1

    def used() -> float:
        return costs.cpu_seconds(os.getpid())

    for system in bench.systems:
        await system.settle()
    before, began = used(), time.monotonic()
    await asyncio.sleep(5)
    idle = (used() - before) / (time.monotonic() - began)
    before, began = used(), time.monotonic()
    for number in range(CALIBRATION_CALLS):
        system = bench.systems[number % len(bench.systems)]
        bench.say(f"what one call costs this machine: {number + 1} of {CALIBRATION_CALLS}")
        (call,) = bench.callers.place(system.url, stay=POISSON_STAY_SECONDS)
        await call.over
    for system in bench.systems:
        await system.settle()
    seconds_per_call = (used() - before - idle * (time.monotonic() - began)) / CALIBRATION_CALLS
    return SHARE_OF_CAPACITY * (cores - idle) / seconds_per_call


async def memory(bench: Bench) -> list[Row]:
    """Megabytes: the warm tree, each warm agent, and each live one."""
    rows = []
    async for _, system in bench.turns(1, "memory"):
        row: Row = {"system": system.name, "warm_tree_pss": costs.pss(costs.tree(system.agents_root))}
        row["all_pss"] = sum(costs.pss(costs.tree(pid)) for pid in system.roots().values())
        row["warm_uss"] = [found.uss for pid in system.agents() if (found := costs.memory(pid))]
        placed = bench.callers.place(system.url, count=LIVE_CALLS, stay=60)
        live = [await system.agent_pid(heard["session"]) for call in placed if (heard := await call.heard)]
        await asyncio.sleep(5)
        row["live_uss"] = [found.uss for pid in live if (found := costs.memory(pid))]
        for call in placed:
            bench.callers.hang_up(call)
            await call.over
        rows.append(row)
    return rows


async def processor(bench: Bench, rounds: int) -> list[Row]:
    """Core-seconds: of each program idle, of a start with its end, of a live agent for each second of its talk."""
    for system in bench.systems:
        await system.settle()
    bench.say(f"idle for {IDLE_SECONDS:.0f} s")
    before = {system.name: system.cpu_by_program() for system in bench.systems}
    await asyncio.sleep(IDLE_SECONDS)
    idle = {system.name: _difference(system.cpu_by_program(), before[system.name]) for system in bench.systems}
    idle = {name: {program: used / IDLE_SECONDS for program, used in each.items()} for name, each in idle.items()}
    rows = []
    async for _, system in bench.turns(rounds, f"{LIVE_CALLS} calls of {TALK_SECONDS:.0f} s"):
        rows.append(await _cost_of_calls(bench, system, idle[system.name]))
    return rows


async def _cost_of_calls(bench: Bench, system: System, idle: dict[str, float]) -> Row:
    """A few calls at once. What a live agent uses is read from its own process while it talks, and nothing else is.

    A start is all the rest: what all programs used from before the calls until all is as it was, without what they
    use idle and without the live agents' talk. So a call's end is in it, and its replacement in the pool, and the
    little that other programs do for a call while it lasts.
    """
    began, before = time.monotonic(), system.cpu_by_program()
    known = system.fork_ms()
    placed = bench.callers.place(system.url, count=LIVE_CALLS, stay=60)
    pids = [await system.agent_pid(heard["session"]) for call in placed if (heard := await call.heard)]
    heard_at = time.monotonic()
    await asyncio.sleep(2)  # the pool fills up again meanwhile
    talk_began, talk_before = time.monotonic(), _used(pids)
    await asyncio.sleep(TALK_SECONDS)
    talk_seconds = time.monotonic() - talk_began
    live = [(used - talk_before[pid]) / talk_seconds for pid, used in _used(pids).items() if costs.is_there(pid)]
    fork_ms = [took for pid, took in system.fork_ms().items() if pid not in known]
    for call in placed:
        bench.callers.hang_up(call)
    # An agent that went meanwhile had a successor, which cost the same.
    talked = statistics.mean(live) * len(pids) * (time.monotonic() - heard_at)
    over = [await call.over for call in placed]
    await system.settle()
    whole = _difference(system.cpu_by_program(), before)
    idled = sum(idle.values()) * (time.monotonic() - began)
    return {
        "system": system.name,
        "idle": idle,
        "whole": whole,
        "live": live,
        "gone": len(pids) - len(live),
        "start_seconds": (sum(whole.values()) - idled - talked) / len(pids),
        "concealed_seconds": [one["concealed_seconds"] for one in over if one],
        "fork_ms": fork_ms,
    }


def _used(pids: list[int]) -> dict[int, float]:
    return {pid: costs.cpu_seconds(pid) for pid in pids}


def _difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}
