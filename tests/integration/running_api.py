"""The API on a port of its own, served in the test's loop, and what a test asks of it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import uvicorn
from yarl import URL

from backend.common import exchange as x
from backend.common.contract import Agent, Assignment
from backend.common.settings import ApiSettings
from backend.orchestrator.api import create_app
from backend.orchestrator.connections import Connections
from backend.orchestrator.house import House
from backend.orchestrator.listening import bind, configuration
from tests.valkey_server import Valkey
from tests.waiting import wait_until_async

ANSWER_SECONDS = 10
"""Far more than any answer may take: the tests themselves say how much that is."""
HOST = "h"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the API answered; ``body`` is None unless it is JSON."""

    status: int
    # Any: what the API answers is what the tests are about.
    body: Any
    text: str
    headers: Mapping[str, str]
    seconds: float


class RunningApi:
    """One API and a client of it without cookies."""

    def __init__(self, settings: ApiSettings, house: House, http: aiohttp.ClientSession) -> None:
        self.settings, self.house, self.http = settings, house, http

    async def ask(self, method: str, path: str | URL, **options: Any) -> Answer:
        """Send a request; ``options`` are aiohttp's."""
        before = time.monotonic()
        async with self.http.request(method, path, **options) as answer:
            text = await answer.text()
            is_json = answer.content_type == "application/json"
            return Answer(
                status=answer.status,
                body=json.loads(text) if is_json else None,
                text=text,
                headers=answer.headers,
                seconds=time.monotonic() - before,
            )

    async def get(self, path: str | URL, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, body: object = None, **headers: str) -> Answer:
        """Post JSON; a header's name is written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask("POST", path, json=body, headers=named)

    async def start(self, **fields: object) -> Answer:
        """Start a session of Ann's; ``key`` is the start's Idempotency-Key."""
        headers = {"Idempotency_Key": str(fields.pop("key"))} if "key" in fields else {}
        return await self.post("/orchestrator/session/start", {"userName": "Ann"} | fields, **headers)

    async def started(self, **fields: object) -> str:
        """Start a session that must come about; returns its id."""
        answer = await self.start(**fields)
        assert answer.status == 200, answer.text
        return str(answer.body["sessionId"])

    async def end(self, session_id: str) -> Answer:
        return await self.post("/orchestrator/session/end", {"sessionId": session_id})

    async def show(self, session_id: str) -> Any:
        answer = await self.get(f"/orchestrator/session/{session_id}")
        assert answer.status == 200, answer.text
        return answer.body

    async def agent(self, name: str = "a", *, pid: int = 7) -> tuple[Agent, Assignment | str]:
        """Let an agent arrive, as its process would."""
        agent = Agent(id=name, nonce=f"nonce-{name}", host_id=HOST, pid=pid)
        return agent, await self.house.run(x.agent_arrives(agent))

    async def live(self, name: str = "a", **fields: object) -> tuple[str, Agent, Assignment]:
        """A session whose caller hears an agent; returns its id, the agent and the assignment."""
        agent, _ = await self.agent(name)
        session_id = await self.started(**fields)
        assignment = Assignment(session_id=session_id, generation=1)
        await self.begin(agent, assignment)
        return session_id, agent, assignment

    async def begin(self, agent: Agent, assignment: Assignment) -> None:
        """What the agent says once it is in the room and its caller can hear it."""
        assert await self.house.run(x.confirm_claim(agent, assignment))
        assert await self.house.run(x.begin_session(agent, assignment))


@asynccontextmanager
async def running_api(settings: ApiSettings, connections: Connections | None = None) -> AsyncIterator[RunningApi]:
    """Serve the API at ``settings.port`` until the block ends."""
    app = create_app(settings)
    config = configuration(app, settings, connections or Connections())
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    listener = bind(settings)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await wait_until_async(lambda: server.started, what="the API serves")
    url, patience = f"http://127.0.0.1:{settings.port}", aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    try:
        async with aiohttp.ClientSession(url, timeout=patience, cookie_jar=aiohttp.DummyCookieJar()) as http:
            yield RunningApi(settings, app.state.house, http)
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """A server that takes connections and never answers; gives its address."""
    release = asyncio.Event()

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        release.set()


def host_is_seen(valkey: Valkey, host_id: str = HOST, *, capacity: int = 10, cores: int = 2) -> None:
    """Say what a host's launcher says every two seconds."""
    call = x.host_reports(host_id, {"capacity": capacity, "cores": cores}, is_open=True)
    x.Exchange().run_sync(valkey.client, call)
