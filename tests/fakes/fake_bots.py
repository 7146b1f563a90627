"""Agents that do not behave, in place of the real one's life; the order's room says which.

``python -m tests.fakes.fake_bots`` is a launcher of them.
"""

import asyncio
import json
import os
import random
import resource
import signal
import sys
import time
from functools import partial

from loguru import logger
from numpy import random as numpy_random

from backend.agent import image, launcher, process
from backend.common import logs, stalls
from backend.common.contract import EndReason
from backend.common.settings import LauncherSettings, read

RELEASE = ""
QUOTED = "eyJhbGciOi.this-is-a-token"
COMMAND = (sys.executable, "-m", "tests.fakes.fake_bots", "agent")


async def wait(_: LauncherSettings, __: image.Order) -> int:
    """Waits for ever."""
    await asyncio.Event().wait()
    return 0


async def leave(_: LauncherSettings, __: image.Order) -> int:
    """Exits at once, and says that all is well."""
    return 0


async def fail(_: LauncherSettings, __: image.Order) -> int:
    """Exits with a code of its own."""
    return 7


async def crash(_: LauncherSettings, __: image.Order) -> int:
    """Dies of an exception whose message holds a token."""
    raise RuntimeError(QUOTED)


async def ignore(settings: LauncherSettings, order: image.Order) -> int:
    """Ignores SIGTERM, and so does a child that it forks."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        _hang()
    note(settings, order, {"child": child})
    _hang()
    return 0


async def fork(settings: LauncherSettings, order: image.Order) -> int:
    """Exits, and leaves a child behind."""
    child = os.fork()
    if child == 0:
        _hang()
    note(settings, order, {"child": child})
    return 0


async def flood(_: LauncherSettings, __: image.Order) -> int:
    """Writes to its log as fast as it goes."""
    while True:
        os.write(2, b"noise " * 1_000 + b"\n")
        await asyncio.sleep(0)


async def say_goodbye(settings: LauncherSettings, order: image.Order) -> int:
    """Ends its session without Redis, and exits."""
    process.leave_last_words(settings, order.agent.id, process.LastWords(end_reason=EndReason.GOODBYE))
    return 0


async def talk(settings: LauncherSettings, order: image.Order) -> int:
    """Has a session with an hour to go."""
    process.write_deadline(settings, order.agent.id, time.time() + 3_600)
    note(settings, order, {})
    return await wait(settings, order)


async def outstay(settings: LauncherSettings, order: image.Order) -> int:
    """Is past its deadline by what its own watchdogs would have had."""
    process.write_deadline(settings, order.agent.id, time.time() - process.LATE_SECONDS)
    return await wait(settings, order)


async def linger(settings: LauncherSettings, order: image.Order) -> int:
    """Logs all the time until the test lets it go, then exits with a code of its own."""
    while not (settings.run_dir / f"{order.agent.id}.go").exists():
        logger.warning("an agent lingers")
        await asyncio.sleep(0.01)
    return 7


async def stall(_: LauncherSettings, __: image.Order) -> int:
    """Holds its loop up for a moment."""
    stalls.look_closely()
    grind_the_beans()
    await asyncio.sleep(0)
    return 0


def grind_the_beans() -> None:
    """Takes longer than a loop has."""
    time.sleep(0.3)


async def tell(settings: LauncherSettings, order: image.Order) -> int:
    """Tells what it inherited."""
    told = {
        "descriptors": [os.readlink(f"/proc/self/fd/{name}") for name in _descriptors() if int(name) > 2],
        "is_session_leader": os.getsid(0) == os.getpid(),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "wakeup": signal.set_wakeup_fd(-1),
        "on_child": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "random": [random.random(), float(numpy_random.random())],  # noqa: S311  # the generators that a fork shares
        "room_token": order.room_token,
        "arguments": sys.argv,
    }
    note(settings, order, told)
    return 0


async def hog(_: LauncherSettings, __: image.Order) -> int:
    """Takes two gigabytes."""
    return len(bytearray(2 * 1024**3)) and 0


async def hoard(_: LauncherSettings, __: image.Order) -> int:
    """Opens a hundred files."""
    return len([os.open(os.devnull, os.O_RDONLY) for _ in range(100)]) and 0


async def show_release(settings: LauncherSettings, order: image.Order) -> int:
    """Tells which release its code is of, and waits."""
    note(settings, order, {"release": RELEASE})
    return await wait(settings, order)


def _hang() -> None:
    time.sleep(600)


def _descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]


LIVES = {
    "": wait,
    "leave": leave,
    "fail": fail,
    "crash": crash,
    "ignore": ignore,
    "fork": fork,
    "flood": flood,
    "say_goodbye": say_goodbye,
    "talk": talk,
    "outstay": outstay,
    "linger": linger,
    "stall": stall,
    "tell": tell,
    "show_release": show_release,
    "hog": hog,
    "hoard": hoard,
}


def note(settings: LauncherSettings, order: image.Order, told: dict[str, object]) -> None:
    """Leave a note for the test."""
    path = settings.run_dir / f"{order.agent.id}.told"
    path.with_suffix(".part").write_text(json.dumps(told))
    path.with_suffix(".part").rename(path)


def load(settings: LauncherSettings) -> image.Life:
    """The image of these bots: nothing but a release, which may be broken."""
    global RELEASE  # noqa: PLW0603  # stands for code that is imported
    path = settings.run_dir / "release"
    RELEASE = path.read_text() if path.exists() else ""
    if RELEASE == "broken":
        raise SystemExit("this release is broken")

    async def live(order: image.Order) -> int:
        return await LIVES[order.room](settings, order)

    return live


def prepare(settings: LauncherSettings) -> image.Starter:
    """As the product does it, with these bots."""
    if settings.agent_start_method == "spawn":
        return partial(image.spawn, command=COMMAND)
    return partial(image.fork, settings=settings, life=load(settings))


if __name__ == "__main__":
    _settings = read(LauncherSettings)
    if sys.argv[1:] == ["agent"]:
        image.be_spawned(_settings, partial(load, _settings))
    logs.configure(_settings, program="launcher")
    launcher.run(_settings, prepare)
