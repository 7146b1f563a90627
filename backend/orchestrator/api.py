"""The REST API. ``python -m backend.orchestrator.api`` serves it; ``create_app`` makes it for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from loguru import logger

from backend.common import logs, renewal, tracing
from backend.common.settings import ApiSettings, read
from backend.orchestrator import lifecycle, metrics, serving, views
from backend.orchestrator.auth import COOKIE, Client, Doorkeeper
from backend.orchestrator.broker import make_app
from backend.orchestrator.connections import Connections
from backend.orchestrator.errors import InvalidRequestError, UnauthorizedError
from backend.orchestrator.gate import surround
from backend.orchestrator.house import House, open_house
from backend.orchestrator.listening import bind, configuration
from backend.orchestrator.rates import Rates
from backend.orchestrator.schemas import (
    EXAMPLE_HEALTH,
    EXAMPLE_STATS,
    GUARDED,
    METRICS_ANSWERS,
    WITH_BODY,
    EndRequest,
    EndResponse,
    SessionList,
    SessionView,
    StartRequest,
    StartResponse,
    TokenRequest,
    TokenResponse,
    answers,
    error_responses,
)
from backend.orchestrator.web import add_error_answers, add_files, give_cookie

DESCRIPTION = """A voice agent in a LiveKit room before the caller gets there.

Start a session, join `serverUrl` with `token`, talk, end it. With `API_KEYS` set every call needs
`Authorization: Bearer <key>`. The session paths answer under `/api` as well as under `/orchestrator`.
"""
MESSAGES = {
    "waiting": "Session created. An agent is coming.",
    "assigned": "Session created. An agent is with you.",
    "live": "The session is running.",
    "ended": "The session has ended.",
}


# Coroutines, though they wait for nothing: FastAPI takes plain functions to another thread, which takes longer.
async def the_house(request: Request) -> House:
    """The collaborators of this process."""
    house: House = request.app.state.house
    return house


_shown_bearer = HTTPBearer(auto_error=False, description="one of API_KEYS; not needed while none is set")


async def the_client(request: Request, _: Annotated[object, Depends(_shown_bearer)]) -> Client:
    """Who calls. Raises: UnauthorizedError, RateLimitedError"""
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    client = doorkeeper.admit(request.headers.get("Authorization"), request.cookies.get(COOKIE))
    await request.app.state.rates.count_call(client, request.scope)
    return client


async def a_starting_client(
    client: Annotated[Client, Depends(the_client)], request: Request, response: Response
) -> Client:
    """Who starts a call; the page's visitors are known for as long as it may last. Raises: RateLimitedError"""
    await request.app.state.rates.count_start(client, request.scope)
    if client.page:
        give_cookie(response, request, request.app.state.doorkeeper, client.page)
    return client


async def a_trusted_client(client: Annotated[Client, Depends(the_client)]) -> Client:
    """Who may see everything. Raises: UnauthorizedError for the page's visitors"""
    if not client.is_trusted:
        raise UnauthorizedError("Send an API key: 'Authorization: Bearer <key>'")
    return client


TheHouse = Annotated[House, Depends(the_house)]
TheClient = Annotated[Client, Depends(the_client)]
StartingClient = Annotated[Client, Depends(a_starting_client)]
TrustedClient = Annotated[Client, Depends(a_trusted_client)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Draw one per call you mean to place: a repeated request then gives the same session.",
    ),
]

sessions = APIRouter(tags=["sessions"])
others = APIRouter()


@sessions.post(
    "/session/start",
    response_model=StartResponse,
    responses=error_responses(*GUARDED, *WITH_BODY, 409),
)
async def start(
    body: StartRequest, house: TheHouse, client: StartingClient, request: Request, key: IdempotencyKey = None
) -> StartResponse:
    """Start a session: the way into its room, with an agent in it or on its way."""
    parent, arrived_at_ns = request.headers.get("traceparent", ""), request.scope.get("arrived_at_ns")
    with tracing.begin("start", parent, began_at_ns=arrived_at_ns) as trace:
        started = await lifecycle.start_session(house, client, body, key, trace)
    settings: ApiSettings = request.app.state.settings
    return StartResponse(
        session_id=started.session_id,
        token=started.token,
        server_url=settings.public_url,
        room_name=started.session_id,
        message=MESSAGES[started.state],
        status=started.state.value,
    )


@sessions.post("/session/end", response_model=EndResponse, responses=error_responses(*GUARDED, *WITH_BODY, 404))
async def end(body: EndRequest, house: TheHouse, client: TheClient) -> EndResponse:
    """End a session. The figures are final, and the same in every later answer."""
    ended = await lifecycle.end_by_client(house, client, body.session_id)
    return views.end_view(body.session_id, ended)


@sessions.get("/session/{session_id}", response_model=SessionView, responses=error_responses(*GUARDED, 404))
async def show(session_id: str, house: TheHouse, client: TheClient) -> SessionView:
    """Show one session; ended ones for 7 days."""
    record = await lifecycle.find_session(house, client, session_id)
    return views.session_view(session_id, record, await house.store.now_ms())


@sessions.get("/sessions", response_model=SessionList, responses=error_responses(*GUARDED, 422))
async def list_sessions(
    house: TheHouse,
    _: TrustedClient,
    status: Literal["waiting", "assigned", "live", "ended"] | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> SessionList:
    """List sessions, newest first; ended ones for 7 days."""
    try:
        rows, following = await house.store.sessions(state=status, limit=limit, cursor=cursor)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
    now_ms = await house.store.now_ms()
    return SessionList(sessions=[views.session_view(*row, now_ms) for row in rows], next_cursor=following)


@others.post(
    "/api/token", response_model=TokenResponse, tags=["sessions"], responses=error_responses(*GUARDED, *WITH_BODY, 404)
)
async def token(body: TokenRequest, house: TheHouse, client: TheClient, request: Request) -> TokenResponse:
    """Give the caller of an unended session a fresh way in. It never makes a session."""
    settings: ApiSettings = request.app.state.settings
    fresh = await lifecycle.come_back(house, client, body.session_id, body.user_id)
    return TokenResponse(token=fresh, url=settings.public_url)


@others.post(
    "/livekit/webhook", tags=["LiveKit"], responses=answers({"success": True}) | error_responses(401, 403, 413, 503)
)
async def webhook(house: TheHouse, request: Request, authorization: Annotated[str, Header()] = "") -> dict[str, bool]:
    """Take an event of the LiveKit server: a JWT that holds the hash of the raw body. Not for clients."""
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError:
        raise UnauthorizedError("This webhook is not signed by our LiveKit server") from None
    await lifecycle.hear_livekit(house, text, authorization)
    return {"success": True}


@others.get(
    "/health", tags=["operation"], responses=answers(EXAMPLE_HEALTH) | {503: {"description": "No call can be started"}}
)
async def health(house: TheHouse, request: Request) -> Response:
    """Tell whether a call can be started (200; `degraded`: but a part is in trouble) or not (503)."""
    is_well, report = await request.app.state.health.look(house)
    return JSONResponse(report, status_code=200 if is_well else 503)


@others.get("/livez", tags=["operation"], responses=answers({"status": "ok"}))
async def livez() -> dict[str, str]:
    """Tell that this process answers. Do not restart it because Redis is away: it comes back by itself."""
    return {"status": "ok"}


@others.get("/stats", tags=["operation"], responses=answers(EXAMPLE_STATS) | error_responses(*GUARDED))
async def stats(house: TheHouse, _: TrustedClient) -> dict[str, Any]:
    """Show the whole fleet: sessions, agents, pool, line, hosts, Redis, queues."""
    return await views.stats(house)


@others.get("/metrics", tags=["operation"], response_class=Response, responses=METRICS_ANSWERS)
async def show_metrics(
    house: TheHouse, _: TrustedClient, request: Request, accept: Annotated[str, Header()] = ""
) -> Response:
    """Show the whole fleet and this process to Prometheus. With Redis away it says so, and shows the process."""
    content, content_type = await metrics.scrape(house, request.app.state.metrics, accept)
    return Response(content, headers={"Content-Type": content_type})


def create_app(settings: ApiSettings) -> FastAPI:
    """Make the application; its connections are opened when it starts to serve."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        house = open_house(settings, make_app(settings))
        app.state.house = replace(house, on_claimed=app.state.metrics.claimed.observe)
        app.state.health = views.Health()
        app.state.rates = Rates(settings, app.state.house.store.client)
        app.state.house.rooms.on_made = app.state.metrics.room_made.observe
        yield
        await app.state.house.close()
        await asyncio.to_thread(tracing.stop)  # uvicorn ends the process by the signal itself: nothing comes after this

    app = FastAPI(
        title="Greenroom",
        version="1.0",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.metrics = metrics.ApiMetrics()
    app.state.doorkeeper = Doorkeeper(settings)
    app.include_router(sessions, prefix="/orchestrator")
    app.include_router(sessions, prefix="/api", include_in_schema=False)
    app.include_router(others)
    add_error_answers(app)
    add_files(app, settings, app.state.doorkeeper)
    app.state.metrics.expect([*sessions.routes, *others.routes])
    surround(app, settings)
    app.add_middleware(metrics.Measured, metrics=app.state.metrics)
    return app


def main() -> None:
    """Serve until told to stop."""
    settings = read(ApiSettings)
    if renewal.is_check():
        create_app(settings)
        return
    logs.configure(settings, program="api")
    tracing.start(settings, "api")
    if settings.python_script_path:
        logger.warning("PYTHON_SCRIPT_PATH is ignored: agents are forked from the launcher, no script is started")
    if not settings.has_keys:
        logger.warning("API_KEYS is not set: anyone on this machine may start calls, and nobody else can reach the API")
    app = create_app(settings)
    config = configuration(app, settings, Connections())
    listener = serving.kept_listener(settings.port) or bind(settings)
    serving.serve(uvicorn.Server(config), listener, on_lag=app.state.metrics.lag.observe)


if __name__ == "__main__":
    main()
