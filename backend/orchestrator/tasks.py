"""The Celery tasks: each enters a use case through the one event loop of its process."""

import asyncio
from dataclasses import dataclass
from typing import Any

from celery.signals import worker_process_shutdown, worker_shutdown
from loguru import logger

from backend.common import tracing
from backend.common.contract import Agent, Ask
from backend.common.exchange import agent_exited
from backend.common.launcher_socket import LauncherError, ask
from backend.common.stalls import StallMonitor
from backend.orchestrator import lifecycle, supply, upkeep
from backend.orchestrator.celery_app import app, settings
from backend.orchestrator.errors import UnavailableError
from backend.orchestrator.house import House, open_house
from backend.orchestrator.side_by_side import OUTAGES, Work, do_all, give_up

TASK_SECONDS = 8.0
"""Under Celery's own soft limit, so that it is the loop that stops and nothing is left half open."""
LAUNCHER_SECONDS = 3.0


@dataclass
class _Process:
    """This process' loop and collaborators; made after Celery forked it."""

    loop: asyncio.AbstractEventLoop | None = None
    house: House | None = None


_process = _Process()


def _run(work: Work) -> None:
    """Do ``work(house)`` in this process' loop; an outage is logged, the next tick tries again."""
    if _process.loop is None:
        _process.loop = StallMonitor().new_loop()
    try:
        _process.loop.run_until_complete(_bounded(work))
    except OUTAGES as error:
        give_up("a task", error)


async def _bounded(work: Work) -> None:
    if _process.house is None:
        tracing.start(settings, "worker")
        _process.house = open_house(settings, app)
    async with asyncio.timeout(TASK_SECONDS):
        await work(_process.house)


@worker_process_shutdown.connect
def _close(**_: Any) -> None:
    if _process.loop and _process.house:
        _process.loop.run_until_complete(_process.house.close())
        tracing.stop()


@worker_shutdown.connect
def _close_down(**_: Any) -> None:
    # In the worker's main process, after its children: what they cannot do any more.
    _run(_leave_nothing)


async def _leave_nothing(house: House) -> None:
    await upkeep.close_down(house)
    while await lifecycle.settle(house):
        pass


@app.task(name="greenroom.tick")
def tick() -> None:
    """Do what is due each second: sweep, refill, settle."""
    _run(lambda house: do_all(house, lifecycle.sweep, supply.refill_while_missing, lifecycle.settle))


@app.task(name="greenroom.sweep")
def sweep() -> None:
    """Act on what expired."""
    _run(lifecycle.sweep)


@app.task(name="greenroom.settle")
def settle() -> None:
    """Account for ended sessions."""
    _run(lifecycle.settle)


@app.task(name="greenroom.reconcile")
def reconcile() -> None:
    """Compare our rooms with our sessions."""
    _run(upkeep.reconcile)


@app.task(name="greenroom.prune")
def prune() -> None:
    """Forget what is too old."""
    _run(upkeep.prune)


@app.task(name="greenroom.refill")
def refill() -> None:
    """Start the agents that are missing, end those that are too many."""
    _run(supply.refill_while_missing)


@app.task(name="greenroom.spawn")
def spawn(agent_id: str) -> None:
    """Let this host's launcher start an agent, in a room of its own unless it is to be parked."""
    _run(lambda house: _spawn(house, agent_id))


async def _spawn(house: House, agent_id: str) -> None:
    try:
        room, token = await supply.make_warm_room(house)
        await _ask_launcher({"do": Ask.SPAWN, "agent_id": agent_id, "room": room, "room_token": token})
    except (LauncherError, UnavailableError) as error:
        logger.warning("agent not started", agent_id=agent_id, error=str(error)[:200])
        # Its slot comes back now, not when the reservation lapses.
        await house.run(agent_exited(Agent(id=agent_id, nonce="", host_id=settings.host_id), exit_code=None))


@app.task(name="greenroom.kill")
def kill(*names: str) -> None:
    """Let this host's launcher end these very processes: an id and a nonce for each."""
    _run(lambda _: _kill(names))


async def _kill(names: tuple[str, ...]) -> None:
    for agent_id, nonce in zip(names[0::2], names[1::2], strict=True):
        await _ask_launcher({"do": Ask.KILL, "agent_id": agent_id, "nonce": nonce})


async def _ask_launcher(request: dict[str, Any]) -> None:
    await ask(settings.launcher_socket, request, timeout_seconds=LAUNCHER_SECONDS)
