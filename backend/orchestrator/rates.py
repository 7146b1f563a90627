"""How often a client may call: counted in Redis, so that all instances of the API count together."""

import asyncio
import ipaddress
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItem, parse_many
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError
from starlette.types import Scope

from backend.common import keys
from backend.common.door_settings import DoorSettings
from backend.orchestrator.auth import Client
from backend.orchestrator.errors import RateLimitedError

COUNT_SECONDS = 0.25
"""What takes longer is not counted: Redis is away, and the call itself fails as it would without a limit."""
NETWORK_BITS = 64
"""What one subscriber has of IPv6: a limit for each of its addresses would be none."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a client stands in one limit after a call."""

    limit: RateLimitItem
    remaining: int
    reset_seconds: int
    """Until at least one more call is possible; 1 or more."""
    is_allowed: bool


class Rates:
    """Counts calls in sliding windows; ``redis`` is the client whose connections it uses."""

    # Any: redis-py's types do not know decode_responses.
    def __init__(self, settings: DoorSettings, redis: Any) -> None:
        pool, prefix = redis.connection_pool, keys.rate("").removesuffix(":")
        storage = RedisStorage("async+redis://", implementation="redispy", key_prefix=prefix, connection_pool=pool)
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._of_keys = parse_many(settings.rate_limit) if settings.rate_limit else []
        self._of_addresses = parse_many(settings.page_rate_limit)

    async def count_call(self, client: Client, scope: Scope) -> None:
        """Count a call with an API key.

        Raises: RateLimitedError
        """
        if client.label and self._of_keys:
            await self._count(self._of_keys, f"key/{client.scope}", scope)

    async def count_start(self, client: Client, scope: Scope) -> None:
        """Count a start by a visitor of the page, by their address.

        Raises: RateLimitedError
        """
        if not client.is_trusted:
            await self._count(self._of_addresses, f"address/{address(scope)}", scope)

    async def _count(self, limits: Sequence[RateLimitItem], who: str, scope: Scope) -> None:
        try:
            async with asyncio.timeout(COUNT_SECONDS):
                standings = [await self._hit(limit, who) for limit in limits]
        except (RedisError, TimeoutError):
            return
        tightest = min(standings, key=lambda standing: (standing.is_allowed, standing.remaining))
        scope["answer_headers"] += headers(tightest, limits)
        if not tightest.is_allowed:
            raise RateLimitedError(
                f"Too many calls: {tightest.limit} are allowed. Try again later",
                retry_after_seconds=tightest.reset_seconds,
            )

    async def _hit(self, limit: RateLimitItem, who: str) -> Standing:
        is_allowed = await self._limiter.hit(limit, who)
        window = await self._limiter.get_window_stats(limit, who)
        reset_seconds = max(1, math.ceil(window.reset_time - time.time()))
        return Standing(limit=limit, remaining=window.remaining, reset_seconds=reset_seconds, is_allowed=is_allowed)


def headers(standing: Standing, limits: Sequence[RateLimitItem]) -> list[tuple[bytes, bytes]]:
    """The fields of the IETF's draft (draft-ietf-httpapi-ratelimit-headers-06): the tightest limit, and all of them."""
    policy = ", ".join(f"{limit.amount};w={limit.get_expiry()}" for limit in limits)
    fields = {
        "ratelimit-limit": standing.limit.amount,
        "ratelimit-remaining": standing.remaining,
        "ratelimit-reset": standing.reset_seconds,
        "ratelimit-policy": policy,
    }
    return [(name.encode(), str(value).encode()) for name, value in fields.items()]


def address(scope: Scope) -> str:
    """Who is at the other end, as far as TRUSTED_PROXIES lets us know; of IPv6 the subscriber's network."""
    try:
        found = ipaddress.ip_address((scope.get("client") or ("",))[0])
    except ValueError:  # a proxy that is trusted wrote something else
        return "unknown"
    if found.version == 4:
        return str(found)
    mapped = found.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(found), NETWORK_BITS), strict=False))
