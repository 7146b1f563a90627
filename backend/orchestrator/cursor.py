"""Where a page of a list ended: opaque to clients, and the same place however much was added since."""

import base64


def write_cursor(session_id: str, created_at_ms: str) -> str:
    """Name the last session of a page."""
    return base64.urlsafe_b64encode(f"{created_at_ms} {session_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str | None) -> tuple[str, str | None]:
    """Return when the session was made, as a bound for Redis, and its id; ('+inf', None) before the first page.

    Raises: ValueError for a cursor that is not one of ours.
    """
    if cursor is None:
        return "+inf", None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        created_ms, session_id = text.split(" ")
        return str(int(created_ms)), session_id
    except ValueError:  # binascii's error and UnicodeDecodeError are ValueErrors
        raise ValueError("cursor: use the nextCursor of the page before, unchanged") from None
