"""How a call can come out: the exit code of each outcome, and an error for each way to fail."""

from enum import StrEnum
from typing import ClassVar


class Outcome(StrEnum):
    """What became of a call."""

    OK = "ok"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"
    UNHEARD = "unheard"
    UNANSWERED = "unanswered"
    CUT_OFF = "cutOff"
    INTERRUPTED = "interrupted"


EXIT_CODES = {
    Outcome.OK: 0,
    Outcome.REFUSED: 3,
    Outcome.UNAVAILABLE: 4,
    Outcome.UNHEARD: 5,
    Outcome.UNANSWERED: 6,
    Outcome.CUT_OFF: 7,
    Outcome.INTERRUPTED: 130,
}
"""1 is left to a fault of the program itself, 2 to wrong usage."""


class CallFailedError(Exception):
    """Raised when a call cannot go on; the message is for the person who placed it."""

    outcome: ClassVar[Outcome]


class RefusedError(CallFailedError):
    """Raised when the API answers with 4xx."""

    outcome = Outcome.REFUSED

    def __init__(self, detail: str, *, status: int, code: str) -> None:
        super().__init__(detail)
        self.status, self.code = status, code


class UnavailableError(CallFailedError):
    """Raised when the API answers with 5xx or not in time, and when LiveKit cannot be reached."""

    outcome = Outcome.UNAVAILABLE


class UnheardError(CallFailedError):
    """Raised when the agent is not heard in time."""

    outcome = Outcome.UNHEARD


class UnansweredError(CallFailedError):
    """Raised when the agent was heard, but does not answer in time."""

    outcome = Outcome.UNANSWERED


class PutOutError(CallFailedError):
    """Raised when the room is closed or lost while the call is not over for the caller."""

    outcome = Outcome.CUT_OFF
