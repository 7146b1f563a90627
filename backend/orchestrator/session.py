"""The rules of one session: its id, its times, its figures."""

import hashlib
import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from backend.common.contract import SessionState


@dataclass(frozen=True, kw_only=True)
class Started:
    """A session and its caller's way in; the token is None once the session ended."""

    session_id: str
    state: SessionState
    token: str | None


def new_session_id(now_ms: int) -> str:
    """Draw the id of a session, which is its room's name: it tells when, and nobody guesses it."""
    return f"session_{now_ms}_{secrets.token_hex(8)}"


def is_session_id(name: str) -> bool:
    """Whether the name can be a session's: ``session:{id}:prompt`` and ``session:open`` are other keys."""
    return re.fullmatch(r"session_[0-9]{1,20}_[0-9a-f]{16}", name) is not None


def new_caller_identity() -> str:
    """Draw the caller's identity; unguessable, because who joins under it takes the caller's place."""
    return f"caller_{secrets.token_hex(8)}"


def short_id() -> str:
    """Draw what makes a name unique beside the millisecond it was made in."""
    return secrets.token_hex(3)


def billed_seconds(billed_ms: int) -> int:
    """Whole seconds, rounded down: in the caller's favour."""
    return billed_ms // 1000


def billed_minutes(seconds: int) -> int:
    """Begun minutes: rounded up once, from the seconds that the client is shown."""
    return math.ceil(seconds / 60)


def talked_ms(record: Mapping[str, str], now_ms: int) -> int | None:
    """How long the caller could hear an agent; None before that. 0 when it ended before that."""
    has_ended = record.get("state") == SessionState.ENDED
    if not record.get("started_at_ms"):
        return 0 if has_ended else None
    until = int(record["ended_at_ms"]) if has_ended else int(record.get("silent_since_ms") or now_ms)
    return max(0, until - int(record["started_at_ms"]) - int(record.get("silent_ms") or 0))


def longest_ms(asked_seconds: int | None, session_timeout_ms: int) -> int:
    """How long the session may last.

    Raises: ValueError when more is asked than SESSION_TIMEOUT allows.
    """
    if asked_seconds is None:
        return session_timeout_ms
    if asked_seconds * 1000 > session_timeout_ms:
        raise ValueError(f"maxDurationSeconds may be at most {session_timeout_ms // 1000} (SESSION_TIMEOUT)")
    return asked_seconds * 1000


def body_hash(body: Mapping[str, object]) -> str:
    """The same for two starts that ask for the same."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def start_key(scope: str, key: str | None) -> str:
    """The idempotency record's name; a start without a key gets one of its own, against repeated commands.

    Hashed: a client's key may hold any character, and may be a secret of its own.
    """
    return f"{scope or 'open'}:{hashlib.sha256((key or secrets.token_hex(16)).encode()).hexdigest()[:32]}"


def iso_time(ms: str | int | None) -> str | None:
    """ISO 8601 in UTC with milliseconds; None where not yet."""
    if not ms:
        return None
    return datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
