"""Thousands of open connections that say nothing or half a sentence, and what the others notice of them.

``python -m tests.benchmarks.crowd [CONNECTIONS]`` starts an API of its own with a Valkey and a LiveKit server.
"""

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import psutil

from backend.local.steps import say
from tests.livekit_server import LiveKitServer
from tests.valkey_server import Valkey, free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
CROWD = 10_000
ROUNDS = 2
HALF_A_HEAD = b"POST /api/session/start HTTP/1.1\r\nHost: localhost\r\nX-Padding: " + b"x" * 4_000
PAUSE_SECONDS = 0.05


@contextmanager
def an_api(folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """The program, and its address."""
    valkey, livekit = Valkey(folder), LiveKitServer(folder)
    valkey.start()
    livekit.start()
    port = free_port()
    variables = {
        "REDIS_URL": valkey.url,
        "LIVEKIT_URL": livekit.url,
        "LIVEKIT_API_KEY": livekit.key,
        "LIVEKIT_API_SECRET": livekit.secret,
        "MAX_WAITING": "100000",
        "BOT_STARTUP_TIMEOUT": "600",  # nobody serves the line here
        "PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "backend.orchestrator.api"]
    with (folder / "api.log").open("w") as log:
        api = subprocess.Popen(command, cwd=folder, env=os.environ | variables, stdout=log, stderr=log)
    try:
        listens = lambda: any(c.status == "LISTEN" for c in psutil.Process(api.pid).net_connections("inet"))  # noqa: E731
        wait_until(listens, timeout=20, what="the API listens")
        yield psutil.Process(api.pid), f"http://127.0.0.1:{port}"
    finally:
        api.terminate()
        api.wait(10)
        livekit.kill()
        valkey.kill()


@asynccontextmanager
async def others(url: str) -> AsyncIterator[list[tuple[int, float]]]:
    """Who asks meanwhile, each on a new connection; gives the status and seconds of each answer."""
    answers: list[tuple[int, float]] = []

    async def ask() -> None:
        timeout = aiohttp.ClientTimeout(total=10)
        while True:
            before, status = time.monotonic(), 0
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                body, path = {"userName": f"u{len(answers)}"}, f"{url}/api/session/start"
                async with aiohttp.ClientSession(timeout=timeout) as http, http.post(path, json=body) as answer:
                    status = answer.status
            answers.append((status, time.monotonic() - before))
            await asyncio.sleep(PAUSE_SECONDS)

    asking = asyncio.ensure_future(ask())
    yield answers
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def crowd(url: str, size: int) -> tuple[int, int]:
    """Open so many, let every second one say half a sentence, and wait until all are hung up on; returns open, told."""
    port = int(url.rpartition(":")[2])
    open_ones = [await asyncio.open_connection("127.0.0.1", port) for _ in range(size)]
    for _, writer in open_ones[::2]:
        with contextlib.suppress(ConnectionError):
            writer.write(HALF_A_HEAD)

    async def rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    told = await asyncio.gather(*(rest(*one) for one in open_ones))
    return len(open_ones), sum(bool(words) for words in told)


async def run(size: int) -> None:
    """Print one line a round."""
    with tempfile.TemporaryDirectory(prefix="gr-") as folder, an_api(Path(folder)) as (api, url):
        async with others(url) as answers:
            await asyncio.sleep(2)
            quiet, before = len(answers), api.memory_info().rss
            say(report("before", answers, before, api))
            for number in range(ROUNDS):
                began, known = time.monotonic(), len(answers)
                opened, told = await crowd(url, size)
                took = time.monotonic() - began
                say(
                    report(
                        f"round {number + 1}: {opened} open, {told} told why, gone after {took:.0f} s",
                        answers[known:],
                        before,
                        api,
                    )
                )
            await asyncio.sleep(2)
            say(report("after", answers[-quiet:], before, api))


def report(what: str, answers: list[tuple[int, float]], before: int, api: psutil.Process) -> str:
    """What the others noticed, and what the API holds."""
    seconds = sorted(seconds for _, seconds in answers)
    statuses = {status: [s for s, _ in answers].count(status) for status, _ in answers}
    rss, files = api.memory_info().rss, api.num_fds()
    return (
        f"{what}: {len(answers)} others, statuses {statuses}, median {seconds[len(seconds) // 2] * 1000:.0f} ms, "
        f"worst {seconds[-1] * 1000:.0f} ms; RSS {rss / 1e6:.0f} MB ({(rss - before) / 1e6:+.0f}), {files} files"
    )


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run(int(sys.argv[1]) if len(sys.argv) > 1 else CROWD))
