"""Greenroom's REST API as a caller uses it: start, end and show a session. Every request has a limit."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp

from backend.caller.errors import RefusedError, UnavailableError

REQUEST_SECONDS = 10.0
"""More than the API allows itself, its waits for Redis and LiveKit included."""
KEEP_SECONDS = 3.0
"""Less than a server keeps an idle connection: the API does for 5 s."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """A session and the way into its room."""

    session_id: str
    status: str
    """``assigned``, or ``waiting`` while no agent is free."""
    server_url: str
    token: str = field(repr=False)


class Greenroom:
    """A running Greenroom. Made inside an event loop, closed by ``async with``; any number of calls may share it."""

    def __init__(self, url: str, *, api_key: str = "") -> None:
        self._url = url.rstrip("/")
        self._client = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            # No queue of our own: a burst is to reach the API as one.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_SECONDS),
        )

    async def __aenter__(self) -> "Greenroom":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def start(self, wish: Mapping[str, Any], *, key: str) -> Started:
        """Start a session; again with the same key gives the same one. Raises: RefusedError, UnavailableError"""
        answer = await self._ask("POST", "/orchestrator/session/start", wish, {"Idempotency-Key": key})
        return Started(
            session_id=answer["sessionId"],
            status=answer["status"],
            server_url=answer["serverUrl"],
            token=answer["token"] or "",
        )

    async def end(self, session_id: str) -> None:
        """End a session; again changes nothing. Raises: RefusedError, UnavailableError"""
        await self._ask("POST", "/orchestrator/session/end", {"sessionId": session_id})

    async def show(self, session_id: str) -> dict[str, Any]:
        """Give the session's record as the API shows it. Raises: RefusedError, UnavailableError"""
        return await self._ask("GET", f"/orchestrator/session/{session_id}")

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            text, status = await self._send(method, path, body, headers)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:  # ValueError: no such address can be
            raise UnavailableError(f"{self._url} does not answer: {_cause(error)}") from None
        parsed = _parse(text)
        if status >= 500:
            raise UnavailableError(f"{status} from {self._url}: {parsed.get('detail', 'no reason given')}")
        if status >= 400:
            detail = str(parsed.get("detail", "no reason given"))
            raise RefusedError(detail, status=status, code=str(parsed.get("error", "")))
        if not parsed:
            raise UnavailableError(f"{self._url} is no Greenroom: its answer is not JSON")
        return parsed

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str] | None
    ) -> tuple[str, int]:
        async def once() -> tuple[str, int]:
            async with self._client.request(method, self._url + path, json=body, headers=headers) as answer:
                return await answer.text(), answer.status

        try:
            return await once()
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The server closed the idle connection just then. Every request here may be repeated.
            return await once()


def _parse(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError:  # a proxy's page, for instance
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came within {REQUEST_SECONDS:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror or "no connection"
    return str(error) or type(error).__name__
