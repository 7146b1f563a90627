"""What can go wrong for a client: one class per thing it can do something about."""

from typing import ClassVar


class GreenroomError(Exception):
    """Answered as ``{"success": false, "error": code, "detail": str(self)}``; the detail says what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    refused_by: ClassVar[str] = ""
    """What refused a start outside Redis (greenroom_api_starts_refused_total); '': Redis did, or the client's fault."""

    def __init__(self, detail: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class InvalidRequestError(GreenroomError):
    """Raised when a field is missing, unknown, too long or of the wrong type."""

    status = 422
    code = "invalid_request"


class UnauthorizedError(GreenroomError):
    """Raised when no known API key and no page cookie came with the call."""

    status = 401
    code = "unauthorized"


class ForbiddenError(GreenroomError):
    """Raised when the session is somebody else's."""

    status = 403
    code = "forbidden"


class UnknownSessionError(GreenroomError):
    """Raised when no session has this id, or it ended and can no longer be joined."""

    status = 404
    code = "session_not_found"


class KeyReusedError(GreenroomError):
    """Raised when an Idempotency-Key comes again with another body."""

    status = 409
    code = "idempotency_key_reused"


class BodyTooLargeError(GreenroomError):
    """Raised when a request's body is larger than 64 KiB."""

    status = 413
    code = "body_too_large"


class FullError(GreenroomError):
    """Raised when a ceiling refuses a start; the detail names what was full."""

    status = 429
    code = "at_capacity"


class RateLimitedError(GreenroomError):
    """Raised when a client calls more often than RATE_LIMIT or PAGE_RATE_LIMIT allows."""

    status = 429
    code = "rate_limited"
    refused_by = "rate"


class UnavailableError(GreenroomError):
    """Raised when Redis or LiveKit does not answer in time. What was answered with it never happens later."""

    status = 503
    code = "unavailable"


class RedisAwayError(UnavailableError):
    """Raised when Redis does not answer."""

    refused_by = "redis"

    def __init__(self) -> None:
        super().__init__("Redis does not answer: try again in a few seconds", retry_after_seconds=5)


class LiveKitAwayError(UnavailableError):
    """Raised when LiveKit does not answer, or refuses us."""

    refused_by = "livekit"


class TooManyStartsError(UnavailableError):
    """Raised when a start's turn does not come: so many come at once."""

    refused_by = "turn"
