"""The Redis core under load: how long a claim takes, with few and with many sessions there, and a sweep of many.

Usage: python -m tests.benchmarks.claims [--rate 1000] [--seconds 10] [--sizes 10 10000 100000] [--write]

Four client processes claim as callers come, by a Poisson process each: first from a pool that is large enough for all
of them, then each claim followed by the rest of a call's life: confirm, end, exit, settle, and the next arrival.
``--write`` puts the table into docs/performance.md.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment, EndReason, Start
from backend.common.limits import Limits
from backend.common.settings import ApiSettings
from backend.local.steps import say
from backend.orchestrator import lifecycle
from backend.orchestrator.broker import make_app
from backend.orchestrator.house import House, open_house
from tests.benchmarks import documents
from tests.benchmarks.wire import Wire, connect
from tests.valkey_server import Valkey

CLIENTS, WIRES = 4, 16
HOSTS = 100
WARM = 200
LIVE_SESSIONS = 10_000
"""Of the sweep."""
CEILING = 10**7
"""Nobody is refused here: what is measured is the claim."""
LIMITS = Limits(lease=3_600_000, settled_ttl=20_000, tombstone_ttl=20_000)
"""No agent beats here, and what ended does not pile up."""
SECTION = "Redis core"
CLAIM_P99_MS, SWEEP_SECONDS = 5.0, 1.0
"""The targets, of 1,000 claims a second and of a sweep of ``LIVE_SESSIONS``."""


def agent(name: str) -> Agent:
    """The agent of this id, whoever made it."""
    return Agent(id=name, nonce=f"n{name}", host_id=f"h{sum(name.encode()) * len(name) % HOSTS}")


def start(session_id: str) -> Start:
    return Start(
        proposed_id=session_id,
        user_id=f"u{hash(session_id) % 5_000}",
        longest_ms=600_000,
        fleet_ceiling=CEILING,
        user_ceiling=CEILING,
        record={"user_name": "Ann", "voice_id": "Ashley", "metadata": "{}"},
        prompt={"opening_line": "Hello!", "system_prompt": "You are kind. " * 20},
    )


# -- one client process


@dataclass
class Client:
    """One process' connections, and what it saw."""

    name: str
    wires: asyncio.Queue[Wire]
    answered_ms: list[float]
    """From sending a claim to its answer."""
    due_ms: list[float]
    """From the moment when it was due: with what this process and its connections were late."""
    is_alone: bool
    """Leave the claimed agents as they are."""

    async def claim(self, number: int, due_at: float) -> None:
        wire = await self.wires.get()
        sent_at = time.perf_counter()
        arrival = await wire.run(x.session_arrives(start(f"s{self.name}_{number}")))
        now = time.perf_counter()
        self.answered_ms.append((now - sent_at) * 1e3)
        self.due_ms.append((now - due_at) * 1e3)
        assert arrival.state == "assigned", "the pool ran dry"
        if self.is_alone:
            self.wires.put_nowait(wire)
            return
        work, claimed = Assignment(session_id=arrival.session_id, generation=1), agent(arrival.agent_id)
        confirmed, end, exited, _, _ = await wire.run_all(
            [
                x.confirm_claim(claimed, work),
                x.end_session(work.session_id, EndReason.GOODBYE, generation=1),
                x.agent_exited(claimed, exit_code=0),
                x.session_settled(work.session_id),
                x.agent_arrives(agent(f"a{self.name}_{number}")),
            ]
        )
        assert confirmed
        assert end.is_first
        assert exited.is_first
        self.wires.put_nowait(wire)


async def be_client(options: argparse.Namespace) -> None:
    """Claim for so long, then print the times as JSON."""
    port, rate, seconds = options.port, options.rate, options.seconds
    exchange = x.Exchange(limits=LIMITS)
    wires: asyncio.Queue[Wire] = asyncio.Queue()
    for _ in range(WIRES):
        wires.put_nowait(await connect(exchange, port))
    client = Client(options.client, wires, [], [], options.alone)
    began = due_at = time.perf_counter()
    claims: list[asyncio.Task[None]] = []
    while due_at - began < seconds:
        due_at += random.expovariate(rate)
        await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
        claims.append(asyncio.create_task(client.claim(len(claims), due_at)))
    await asyncio.gather(*claims)
    say(json.dumps({"answered": client.answered_ms, "due": client.due_ms, "seconds": time.perf_counter() - began}))


# -- the runs


async def fill(wire: Wire, present: int, wanted: int) -> None:
    """Let there be ``wanted`` live sessions."""
    for number in range(present, wanted):
        old, name = agent(f"old{number}"), f"session_old{number}"
        work = Assignment(session_id=name, generation=1)
        offered, asked = x.agent_arrives(old), x.session_arrives(start(name))
        await wire.run_all([offered, asked, x.confirm_claim(old, work), x.begin_session(old, work)])


def run_clients(port: int, rate: float, seconds: float, *, is_alone: bool) -> list[dict[str, list[float]]]:
    """Let four processes claim at once; returns what each printed."""
    here = [sys.executable, "-m", "tests.benchmarks.claims", *(["--alone"] if is_alone else [])]
    options = ["--rate", str(rate / CLIENTS), "--seconds", str(seconds), "--port", str(port)]
    running = [
        subprocess.Popen([*here, *options, "--client", f"{time.time_ns()}_{n}"], stdout=subprocess.PIPE)
        for n in range(CLIENTS)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running)
    return [json.loads(output) for output in outputs]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One line of a table, and what the target is about: a claim's p99 in ms, or a sweep's seconds."""

    what: str
    figure: float
    row: list[str]


async def claims_at(valkey: Valkey, size: int, options: argparse.Namespace, *, is_alone: bool) -> Measured:
    """Measure claims with so many live sessions there."""
    before = cpu_seconds(valkey)
    seen = await asyncio.to_thread(run_clients, valkey.port, options.rate, options.seconds, is_alone=is_alone)
    worked_us = (cpu_seconds(valkey) - before) * 1e6
    answered = sorted(ms for client in seen for ms in client["answered"])
    due = sorted(ms for client in seen for ms in client["due"])
    done = len(answered) / max(float(str(client["seconds"])) for client in seen)
    figures = [at(answered, part) for part in (0.5, 0.95, 0.99, 1)]
    life_us = worked_us / len(answered)
    what = "claims alone" if is_alone else "whole lives"
    row = [f"{size:,}", what, f"{done:,.0f}", *(f"{ms:.2f}" for ms in (*figures, at(due, 0.99))), f"{life_us:.0f}"]
    return Measured(what=what, figure=figures[2], row=row)


def cpu_seconds(valkey: Valkey) -> float:
    """What the server has worked so far: bears a busy machine, as a wall clock does not."""
    told = valkey.client.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def at(ordered: list[float], part: float) -> float:
    return ordered[int((len(ordered) - 1) * part)]


async def sweeps(valkey: Valkey, house: House) -> list[Measured]:
    """Measure sweeps of LIVE_SESSIONS live sessions: none due, and all due at once."""
    rows = []
    agents = [name for name in valkey.client.zrange(keys.DEADLINES, 0, -1) if name.startswith("agent:old")]
    agents = agents[:LIVE_SESSIONS]
    for what, due in (("nothing is due", []), (f"all {len(agents):,} agents fell silent", agents)):
        if due:
            valkey.client.zadd(keys.DEADLINES, dict.fromkeys(due, 1))
        valkey.client.hset(keys.SWEEP, mapping={"swept_at_ms": valkey.now_ms(), "quiet_until_ms": 0})
        before, worked, here = time.perf_counter(), cpu_seconds(valkey), time.process_time()
        handled = await lifecycle.sweep(house)
        took = (time.perf_counter() - before, cpu_seconds(valkey) - worked, time.process_time() - here)
        row = [what, f"{handled:,}", *(f"{seconds * 1e3:,.1f}" for seconds in took)]
        rows.append(Measured(what=what, figure=took[0], row=row))
    return rows


def targets(rate: float, claims: Sequence[Measured], swept: Sequence[Measured]) -> list[list[str]]:
    """What was asked and what came: of the claims the worst of all sizes, of the sweeps each."""
    worst = {each.what: each for each in sorted(claims, key=lambda each: each.figure)}
    lines = [
        documents.at_most(f"claim p99 at {rate:,.0f} a second, {what}", CLAIM_P99_MS, worst[what].figure, "ms")
        for what in dict.fromkeys(each.what for each in claims)
    ]
    sweep = f"one sweep of {LIVE_SESSIONS:,} live sessions"
    return lines + [documents.at_most(f"{sweep}: {each.what}", SWEEP_SECONDS, each.figure, "s") for each in swept]


def settings(valkey: Valkey) -> ApiSettings:
    return ApiSettings(
        _env_file=None,
        redis_url=valkey.url,
        livekit_url="ws://127.0.0.1:9",
        livekit_api_key="key",
        livekit_api_secret="s" * 32,  # nobody is asked
        host_id="bench",
    )


async def measure(valkey: Valkey, options: argparse.Namespace) -> list[str]:
    """Make every run; returns the document's lines."""
    house = open_house(settings(valkey), make_app(settings(valkey)))
    wire = await connect(house.exchange, valkey.port)
    await wire.run_all([x.host_reports(f"h{n}", {"capacity": 10_000, "cores": 4}, is_open=True) for n in range(HOSTS)])
    present, claims, swept = 0, list[Measured](), list[Measured]()
    for size in options.sizes:
        say(f"filling up to {size:,} live sessions")
        await fill(await connect(x.Exchange(limits=LIMITS), valkey.port), present, size)
        present = size
        for is_alone in (True, False):
            warm = WARM + (int(1.2 * options.rate * options.seconds) if is_alone else 0)
            for number in range(warm):
                await wire.run(x.agent_arrives(agent(f"w{size}_{is_alone}_{number}")))
            claims.append(await claims_at(valkey, size, options, is_alone=is_alone))
            say(f"  {claims[-1].row}")
            await clear(valkey, wire)
    if present >= LIVE_SESSIONS:
        swept = await sweeps(valkey, house)
        say(f"  {[each.row for each in swept]}")
    await house.close()
    head = ["live sessions", "", "claims/s", "median", "p95", "p99", "worst", "p99 from when due", "Redis us"]
    return [
        *documents.table(documents.TARGET_HEAD, targets(options.rate, claims, swept)),
        "",
        *documents.table(head, [each.row for each in claims]),
        "",
        "Milliseconds over a socket, from sending a `session_arrives` that takes a warm agent to its answer; the last "
        "column is Redis' own processor time for a claim alone, or for the six operations of a session's life, in us.",
        "",
        *documents.table(
            ["one sweep, its kill commands sent", "handled", "ms", "of Redis' processor", "of the worker's"],
            [each.row for each in swept],
        ),
    ]


async def clear(valkey: Valkey, wire: Wire) -> None:
    """End the agents that nobody claimed, and the sessions that claims alone left."""
    for name in valkey.client.zrange(keys.POOL_READY, 0, -1):
        await wire.run(x.agent_exited(agent(name), exit_code=0))
    for name in valkey.client.zrange(keys.SESSION_OPEN, 0, -1):
        if not name.startswith("session_old"):
            claimed = agent(valkey.client.hget(keys.session(name), "agent_id"))
            end = x.end_session(name, EndReason.GOODBYE)
            await wire.run_all([end, x.agent_exited(claimed, exit_code=0), x.session_settled(name)])


def main() -> None:
    parser = argparse.ArgumentParser(description="The Redis core under load")
    parser.add_argument("--rate", type=float, default=1_000.0, help="claims a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 10_000, 100_000])
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--client", default="", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logger.remove()
    if options.client:
        asyncio.run(be_client(options))
        return
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as sink:
        logger.add(sink)  # logging is a part of the work
        server = Valkey(Path(folder))
        server.start()
        try:
            lines = asyncio.run(measure(server, options))
        finally:
            server.client.close()
            server.kill()
    when = f"{datetime.now(UTC):%Y-%m-%d}, {documents.machine()}"
    text = [when, "", *lines]
    say("\n".join(text))
    if options.write:
        documents.write_section(
            "performance.md", SECTION, ["```", "python -m tests.benchmarks.claims --write", "```", "", *text]
        )


if __name__ == "__main__":
    main()
