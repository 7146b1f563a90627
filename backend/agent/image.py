"""What agents are started from, and the first steps of a started one.

``fork`` copies a process that has imported and loaded everything; ``spawn`` starts a fresh
interpreter, which loads the same by itself (``python -m backend.agent.image``). Nothing that runs
threads, an event loop or LiveKit's native runtime may be touched before a fork.
"""

import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from loguru import logger

from backend.agent import process
from backend.agent.confinement import confine
from backend.common import logs, stalls, tracing, untraced
from backend.common.contract import Agent
from backend.common.settings import LauncherSettings, read

COMMAND = (sys.executable, "-m", "backend.agent.image")


@dataclass(frozen=True, kw_only=True)
class Order:
    """One agent to be: its name, and its own room where it has one."""

    agent: Agent
    """Without its pid, until it runs."""
    room: str = ""
    room_token: str = field(default="", repr=False)


Life = Callable[[Order], Coroutine[Any, Any, int]]
"""All that an agent does, from its first step to its exit code."""

Starter = Callable[[Order], int]
"""Starts one agent; returns its pid."""


def prepare(settings: LauncherSettings) -> Starter:
    """Get ready to start agents by AGENT_START_METHOD; for forks this loads the image, which takes seconds."""
    if settings.agent_start_method == "spawn":
        return partial(spawn, command=COMMAND)
    life = load(settings)
    threads = len(list(Path("/proc/self/task").glob("*")))
    if threads > 1:
        logger.warning(
            "the image runs threads, which do not survive a fork: use AGENT_START_METHOD=spawn", threads=threads
        )
    return partial(fork, settings=settings, life=life)


def load(settings: LauncherSettings) -> Life:
    """Import and load all that an agent needs, and let the garbage collector leave it alone."""
    untraced.load("pipecat.utils.tracing.setup")
    from backend.agent import bots, standby  # noqa: PLC0415  # slow, and of no use to a launcher that spawns

    try:
        bot = bots.find(settings.agent_bot, settings)
    except ValueError as error:  # a wrong AGENT_BOT
        raise SystemExit(str(error)) from None

    async def live(order: Order) -> int:
        return await standby.serve(order.agent, bot, settings, room=order.room, room_token=order.room_token)

    tracing.load(settings)
    gc.collect()
    gc.freeze()  # a collection would write to every page that parent and children share
    return live


def fork(order: Order, *, settings: LauncherSettings, life: Life) -> int:
    """Start an agent as a copy of this process; returns its pid."""
    # Until the child has handlers of its own, a signal to it would run ours, and wake our loop.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            begin(order, settings, lambda: life, is_fork=True)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spawn(order: Order, *, command: tuple[str, ...]) -> int:
    """Start an agent as a fresh interpreter, the order on its standard input; returns its pid."""
    reading, writing = os.pipe()
    try:
        # Fits into the pipe's buffer, so nobody waits: the launcher's socket takes no longer lines.
        os.write(writing, json.dumps(asdict(order)).encode())
        actions = [(os.POSIX_SPAWN_DUP2, reading, 0)]
        return os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=True)
    finally:
        os.close(reading)
        os.close(writing)


def be_spawned(settings: LauncherSettings, prepare_life: Callable[[], Life]) -> NoReturn:
    """Be the agent that standard input orders."""
    fields = json.load(sys.stdin)
    order = Order(agent=Agent(**fields.pop("agent")), **fields)
    begin(order, settings, prepare_life, is_fork=False)


def begin(order: Order, settings: LauncherSettings, prepare_life: Callable[[], Life], *, is_fork: bool) -> NoReturn:
    """Turn this process into the agent and end it with the agent's exit code: never return into the launcher's code."""
    code, error = 1, ""
    try:
        if is_fork:
            _leave_the_launcher()
        else:
            logs.configure(settings, program="agent")  # 10 ms that a fork saves: it has the launcher's
        confine(settings)
        agent = replace(order.agent, pid=os.getpid())
        process.write_state(settings, agent)
        logger.configure(extra={"program": "agent", "host_id": agent.host_id, "agent_id": agent.id})
        code = stalls.run(prepare_life()(replace(order, agent=agent)), is_calm=True)
    except BaseException as reason:  # whatever it is, it ends here
        error = _place(reason)
        logger.opt(exception=reason).error("the agent failed")
    finally:
        _leave(order, settings, code, error)


def _leave_the_launcher() -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # The lock first of all: as long as one copy is open, no other launcher can start.
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            _close(int(name))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Python's own generator reseeds itself. numpy.random is imported at its first use, which takes 20 ms.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return  # the one that listed the folder


def _place(error: BaseException) -> str:
    """Say what failed and where, without its message: that may quote a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def _leave(order: Order, settings: LauncherSettings, code: int, error: str) -> NoReturn:
    try:
        tracing.stop()
        # For the next launcher, should ours be gone: it cannot wait for a process that is not its child.
        process.leave_last_words(settings, order.agent.id, process.LastWords(exit_code=code, error=error))
        sys.stdout.flush()
    finally:
        os._exit(code)  # nothing of the launcher's may run here: no exit handlers, no destructors


if __name__ == "__main__":
    _settings = read(LauncherSettings)
    be_spawned(_settings, partial(load, _settings))
