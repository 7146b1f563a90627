"""Where the API listens, and how uvicorn treats who connects."""

import functools
import socket
import sys

import uvicorn
from fastapi import FastAPI

from backend.common.settings import ApiSettings
from backend.orchestrator.connections import Connections, GuardedProtocol

GRACEFUL_SECONDS = 3
"""For requests that are under way when the program is told to stop; none takes longer."""


def configuration(app: FastAPI, settings: ApiSettings, connections: Connections) -> uvicorn.Config:
    """What uvicorn needs to know."""
    return uvicorn.Config(
        app,
        # A class to uvicorn is what makes a protocol for each connection.
        http=functools.partial(GuardedProtocol, connections=connections),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # From whoever else sends X-Forwarded-For it is a claim.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )


def bind(settings: ApiSettings) -> socket.socket:
    """Listen where the settings say. Raises: SystemExit, after one line that says what to do"""
    try:
        family = socket.AF_INET6 if ":" in settings.bind_address else socket.AF_INET
        listener = socket.create_server((settings.bind_address, settings.port), family=family, backlog=2048)
    except OSError as error:
        reason = f"PORT {settings.port} on {settings.bind_address} cannot be bound: {error.strerror}"
        print(f"{reason}. Stop what listens there, or set PORT", file=sys.stderr)  # noqa: T201  # the one line
        raise SystemExit(1) from None
    # asyncio sets it only on sockets that it made itself. Without it an answer's body waits 40 ms for the client.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
