"""Sessions, the pool, tokens and rooms: the programs api, worker and beat."""

from backend.common import untraced

untraced.load("redis.observability.providers")
