"""``/metrics``: this process' own metrics, and the fleet's as one look at Redis shows them."""

import asyncio
import time
from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Metric,
    PlatformCollector,
    disable_created_metrics,
)
from prometheus_client import ProcessCollector as ThisProcess
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.common.exchange import read_fleet
from backend.common.numbers import Fleet
from backend.orchestrator import fleet_metrics, supply
from backend.orchestrator.commands import QueueState
from backend.orchestrator.errors import LiveKitAwayError, RateLimitedError, RedisAwayError, TooManyStartsError
from backend.orchestrator.fleet_metrics import Look
from backend.orchestrator.house import House

LOOK_SECONDS = 0.8
"""For the two looks, at the same time: with Redis away a scrape still answers within a second."""
ANSWER_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CLAIM_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Around the 5 ms that a claim may take; after one second a start is answered without it."""
LIVEKIT_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
METHODS = ("GET", "POST")
START = "/session/start"
OTHER = "other"
"""Paths and methods that are none of ours: anyone may make them up, so they share a label."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a further sample for each of ours, which nothing reads


class ApiMetrics:
    """The metrics of this process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.host_ids: list[str] = []
        """As of the last scrape: so that the queues need not wait for the hosts."""
        self.requests = Counter(
            "greenroom_api_requests",
            "requests answered by this process",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "greenroom_api_request_seconds",
            "from a request to the end of its answer",
            ["route", "method"],
            buckets=ANSWER_SECONDS,
            registry=self.registry,
        )
        self.lag = Histogram(
            "greenroom_api_loop_lag_seconds",
            "the longest stretch of each second for which the event loop heeded nothing else",
            buckets=LAG_SECONDS,
            registry=self.registry,
        )
        self.room_made = Histogram(
            "greenroom_api_room_made_seconds",
            "how long LiveKit took to make a room",
            buckets=LIVEKIT_SECONDS,
            registry=self.registry,
        )
        self.claimed = Histogram(
            "greenroom_api_claim_seconds",
            "from asking Redis for a start's agent or place in the line to its answer",
            buckets=CLAIM_SECONDS,
            registry=self.registry,
        )
        self.starts_refused = Counter(
            "greenroom_api_starts_refused",
            "starts refused by this process, not by Redis: too many at once, LiveKit or Redis away, a rate limit",
            ["cause"],
            registry=self.registry,
        )
        for error in (TooManyStartsError, LiveKitAwayError, RedisAwayError, RateLimitedError):
            self.starts_refused.labels(error.refused_by)
        for make in (ThisProcess, PlatformCollector, GCCollector):
            make(registry=self.registry)

    def expect(self, routes: Iterable[BaseRoute]) -> None:
        """Show these routes and their documented answers from the start, as 0."""
        for route in routes:
            for method in getattr(route, "methods", ()):
                self.seconds.labels(_path(route), method)
                for status in (200, *getattr(route, "responses", ()), 500):
                    self.requests.labels(_path(route), method, status)

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one answer."""
        route = _path(scope.get("route"))
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self.requests.labels(route, method, status).inc()
        self.seconds.labels(route, method).observe(seconds)
        if route == START and (cause := scope.get("refused_by")):
            self.starts_refused.labels(cause).inc()


class Measured:
    """Counts and times every request."""

    def __init__(self, app: ASGIApp, *, metrics: ApiMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        before, status = time.perf_counter(), 500

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            self._metrics.note(scope, status, time.perf_counter() - before)


def _path(route: object) -> str:
    """The route as it was declared: the same under ``/orchestrator`` and ``/api``, and never with an id in it."""
    return getattr(route, "path", OTHER)


class _Together(Collector):
    """What one scrape shows."""

    def __init__(self, metrics: ApiMetrics, look: Look) -> None:
        self._metrics, self._look = metrics, look

    def collect(self) -> Iterator[Metric]:
        """Give this process' metrics, then the fleet's."""
        yield from self._metrics.registry.collect()
        yield from fleet_metrics.collect(self._look)


async def scrape(house: House, metrics: ApiMetrics, accept: str) -> tuple[bytes, str]:
    """Answer one scrape: the text and its content type, as ``accept`` asks for it. Never fails, never waits long."""
    encode, content_type = choose_encoder(accept)
    shown = _Together(metrics, await _look(house, metrics))
    # Beside the loop: 5 ms for one host, 70 ms for a thousand.
    return await asyncio.to_thread(encode, shown), content_type


async def _look(house: House, metrics: ApiMetrics) -> Look:
    redis_said, queues = await asyncio.gather(_look_at_redis(house), _look_at_broker(house, metrics.host_ids))
    fleet, seconds, memory_bytes, target = redis_said
    if fleet:
        metrics.host_ids = [host.id for host in fleet.hosts]
    return Look(fleet=fleet, redis_seconds=seconds, redis_memory_bytes=memory_bytes, queues=queues, pool_target=target)


async def _look_at_redis(house: House) -> tuple[Fleet | None, float, int, int]:
    """The fleet, how long it took to read it, what Redis holds, the pool's target; None: no answer in time."""
    before = time.monotonic()
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            fleet = await house.run(read_fleet())
            seconds = time.monotonic() - before
            return fleet, seconds, *await asyncio.gather(house.store.memory_bytes(), supply.target(house))
    except (RedisError, OSError, TimeoutError):  # what greenroom_up says
        return None, 0.0, 0, 0


async def _look_at_broker(house: House, host_ids: list[str]) -> dict[str, QueueState] | None:
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await house.commands.queue_states(host_ids)
    except (RedisError, OSError, TimeoutError):  # what greenroom_up says
        return None
