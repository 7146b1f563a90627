"""The API's listening socket, which stays when the API takes new code: who connects meanwhile waits, and is served."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable

import uvicorn
from loguru import logger

from backend.common import renewal, stalls

LOOK_SECONDS = 0.1
LAST_REQUESTS_SECONDS = 0.5
"""For who is connected to send a request: it comes right after the connection, and is the last one there."""


def kept_listener(port: int) -> socket.socket | None:
    """The socket that this process listened with before it was renewed; None when it was not, or listened elsewhere."""
    kept = renewal.inherited(_listens)
    listener = None if kept is None else socket.socket(fileno=kept)
    if listener is not None and listener.getsockname()[1] != port:
        listener.close()
        return None
    return listener


def serve(server: uvicorn.Server, listener: socket.socket, *, on_lag: Callable[[float], None]) -> None:
    """Serve until told to stop. On SIGHUP finish what is under way and go on with the code that is on disk then."""
    kept = os.dup(listener.fileno())  # uvicorn closes its own before the last answers are out

    async def run() -> bool:
        renewing = asyncio.create_task(_renew_when_told(server))
        await server.serve(sockets=[listener])
        is_due = renewing.done()
        renewing.cancel()
        return is_due

    is_renewed = False
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once all is closed
        is_renewed = stalls.run(run(), on_lag=on_lag)
    if is_renewed:
        renewal.hold_stops()
        renewal.execute_anew([kept])


async def _renew_when_told(server: uvicorn.Server) -> None:
    """Return, the server being told to exit, once new code is wanted and starts."""
    is_wanted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, is_wanted.set)
    renewal.hear_stops()
    while True:
        await is_wanted.wait()
        is_wanted.clear()
        logger.info("the new code is tried")
        if await _passes(renewal.Trial()):
            logger.info("the API is renewed")
            await _take_nobody_new(server)
            server.should_exit = True
            return
        logger.error("the new code does not start: the API goes on with the old one")


async def _take_nobody_new(server: uvicorn.Server) -> None:
    """Let the next connections wait for the new code, and each that is there send one more request."""
    for listening in server.servers:
        listening.close()
    server.config.encoded_headers.append((b"connection", b"close"))
    server.server_state.default_headers = [*server.server_state.default_headers, (b"connection", b"close")]
    await asyncio.sleep(LAST_REQUESTS_SECONDS)


async def _passes(trial: renewal.Trial) -> bool:
    try:
        while (passed := trial.passed()) is None:  # noqa: ASYNC110  # it is a process that is waited for
            await asyncio.sleep(LOOK_SECONDS)
        return passed
    finally:
        trial.stop()


def _listens(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as known:
        is_network = known.family in (socket.AF_INET, socket.AF_INET6)
        return is_network and bool(known.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
