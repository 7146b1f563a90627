"""What every request goes through: security headers, the size of its body, the host it asks for."""

import time
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.common.settings import ApiSettings
from backend.orchestrator.errors import BodyTooLargeError, ForbiddenError
from backend.orchestrator.web import answer_to, error_answer

BODY_BYTES = 64 * 1024
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cache-control": b"no-store",
    b"cross-origin-resource-policy": b"same-site",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}


RATE_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy")


def surround(app: FastAPI, settings: ApiSettings) -> None:
    """Put it all around the application; what is added last comes first."""
    app.add_middleware(Limits, is_open=not settings.has_keys)
    if settings.cors_origins:  # around Limits: errors too are for the script that caused them
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", "Idempotency-Key", "traceparent"),
            expose_headers=("Retry-After", *RATE_HEADERS),
        )
    app.add_middleware(Headers)


class Headers:
    """Puts the security headers on every answer that does not have them, and those of ``scope["answer_headers"]``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scope["answer_headers"] = further = list[tuple[bytes, bytes]]()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in HEADERS.items() if name not in present]
                message["headers"] = [*message["headers"], *added, *further]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Limits:
    """Refuses bodies over 64 KiB as they come, and answers what nobody foresaw.

    Without API_KEYS it also refuses foreign host names: a web page of somebody else could have its own name
    lead to this machine, and would then be let in as if it were ours.
    """

    def __init__(self, app: ASGIApp, *, is_open: bool) -> None:
        self._app, self._is_open = app, is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["arrived_at_ns"] = time.time_ns()  # Unix nanoseconds: a start's trace begins here
        if self._is_open and not _is_this_machine(scope):
            refusal = ForbiddenError("Without API_KEYS only 127.0.0.1 and localhost are served: set API_KEYS")
            await answer_to(refusal)(scope, receive, send)
            return
        has_begun = False

        async def send_and_see(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, _at_most(BODY_BYTES, receive), send_and_see)
        except _TooLarge:
            await answer_to(BodyTooLargeError("The body is larger than 64 KiB: send less"))(scope, receive, send)
        except Exception as error:
            logger.opt(exception=error).error("request failed", path=scope["path"])
            if has_begun:
                raise
            sorry = error_answer(500, "internal_error", "Something went wrong here; it was logged. Try again.", {})
            await sorry(scope, receive, send)


def _at_most(limit_bytes: int, receive: Receive) -> Receive:
    seen = 0

    async def receive_some() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit_bytes:
            raise _TooLarge
        return message

    return receive_some


def _is_this_machine(scope: Scope) -> bool:
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "localhost")
    try:
        return urlsplit(f"//{host}").hostname in ("127.0.0.1", "localhost", "::1")
    except ValueError:  # a bracket without its other half
        return False


class _TooLarge(HTTPException):
    def __init__(self) -> None:
        super().__init__(413)
