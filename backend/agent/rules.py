"""When a call is over, and when the agent must say something first: rules without clocks, rooms or vendors.

Every ``now`` is a reading of time.monotonic(), given by the caller.
"""

from dataclasses import dataclass
from enum import StrEnum

from backend.common.contract import EndReason
from backend.common.settings import LauncherSettings

WARNING_SECONDS = 30.0
"""The caller is told of the time limit this long before; in a call that is hardly longer, a third of it before."""
SHORT_SECONDS = WARNING_SECONDS + 6
"""Below this the warning would come into the greeting."""
ANSWER_SECONDS = 6.5
"""How long a language model may think before its first word; its own connection gives up after 5."""
SPEECH_SECONDS = 0.5
"""Less than this is a cough or a click, and no transcript of it is no fault."""
UNHEARD_TURNS = 2
"""So many turns without a transcript, one after the other, are a fault of the ears and not of the caller."""


class Reminder(StrEnum):
    """What the agent says of its own accord."""

    STILL_THERE = "still_there"
    TIME_WARNING = "time_warning"


class Remedy(StrEnum):
    """What is done about a vendor's fault."""

    APOLOGISE = "apologise"
    GIVE_UP = "give_up"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a call waits, in seconds."""

    nobody_came: float
    caller_grace: float
    silence_ask: float
    silence_end: float

    @classmethod
    def of(cls, settings: LauncherSettings) -> "Patience":
        """Read it from the settings."""
        return cls(
            nobody_came=settings.nobody_came_seconds,
            caller_grace=settings.caller_grace_seconds,
            silence_ask=settings.silence_ask_seconds,
            silence_end=settings.silence_end_seconds,
        )


class Clock:
    """Knows what is due in one call."""

    def __init__(self, patience: Patience, now: float, *, has_begun: bool = False) -> None:
        self.deadline: float | None = None
        """None until the caller can hear."""
        self._patience, self._started_at = patience, now
        self._begun_at: float | None = None
        self._was_met = has_begun
        self._warning_at: float | None = None
        self._absent_since: float | None = None
        self._quiet_since = now
        self._has_asked = False

    def begin(self, now: float, left_seconds: float) -> None:
        """The caller can hear and has ``left_seconds`` to talk; again: the time was corrected."""
        self._begun_at = now if self._begun_at is None else self._begun_at
        self._was_met = True
        self.deadline = now + left_seconds
        before = WARNING_SECONDS if left_seconds >= SHORT_SECONDS else left_seconds / 3
        self._warning_at = self.deadline - before
        self._quiet_since = now

    @property
    def has_begun(self) -> bool:
        """Whether the caller could ever hear this agent."""
        return self._begun_at is not None

    @property
    def absence(self) -> EndReason:
        """What it is called when there is no caller: one who was heard has left, another never came."""
        return EndReason.CALLER_LEFT if self._was_met else EndReason.NOBODY_CAME

    def left_seconds(self, now: float) -> float | None:
        """Return how long the call may still last; None before it began."""
        return None if self.deadline is None else max(0.0, self.deadline - now)

    def caller_spoke(self, now: float) -> None:
        """The caller said or typed something, or is about to."""
        self._quiet_since, self._has_asked = now, False

    def agent_spoke(self, now: float) -> None:
        """The agent said something; its own question about the silence does not break the silence."""
        if not self._has_asked:
            self._quiet_since = now

    def look(self, now: float, *, is_caller_here: bool, is_connected: bool) -> EndReason | Reminder | None:
        """Return what is due, at most one thing; a reminder is due once."""
        if self.deadline is not None and now >= self.deadline:
            return EndReason.TIME_LIMIT
        if not is_caller_here or self._begun_at is None:
            return self._look_for_caller(now, is_caller_here, is_connected)
        self._absent_since = None
        if self._warning_at is not None and now >= self._warning_at:
            self._warning_at = None
            return Reminder.TIME_WARNING
        return self._look_for_speech(now)

    def _look_for_caller(self, now: float, is_caller_here: bool, is_connected: bool) -> EndReason | None:
        self._quiet_since = now  # nobody is asked for words while away
        if is_caller_here:
            self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = now
        if now < self._waits_until(is_caller_here):
            return None
        # A dead server looks like a caller who left, and is found out 16 s later.
        return self.absence if is_connected else EndReason.ROOM_LOST

    def _waits_until(self, is_caller_here: bool) -> float:
        if self._was_met and self._absent_since is not None:
            return self._absent_since + self._patience.caller_grace
        # One who is in the room but cannot hear yet gets a little longer, and is not billed for it.
        grace = self._patience.caller_grace if is_caller_here else 0.0
        return self._started_at + self._patience.nobody_came + grace

    def _look_for_speech(self, now: float) -> EndReason | Reminder | None:
        quiet_seconds = now - self._quiet_since
        if quiet_seconds >= self._patience.silence_end:
            return EndReason.SILENCE
        if quiet_seconds >= self._patience.silence_ask and not self._has_asked:
            self._has_asked = True
            return Reminder.STILL_THERE
        return None


class Faults:
    """Counts what vendors fail to do: the first fault gets an apology, the next one ends the call."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._failed_answers = 0
        self._unheard_turns = 0

    def answer_asked(self, now: float) -> None:
        """The language model was given something to answer."""
        self._asked_at = now

    def answer_began(self) -> None:
        """It answers."""
        self._asked_at, self._failed_answers = None, 0

    def answer_dropped(self) -> None:
        """The caller interrupted before there was an answer."""
        self._asked_at = None

    def answer_failed(self) -> Remedy:
        """It reported an error, or was late."""
        self._asked_at = None
        self._failed_answers += 1
        return Remedy.APOLOGISE if self._failed_answers == 1 else Remedy.GIVE_UP

    def answer_ended(self) -> Remedy | None:
        """It said that it is done; without a word is a failure."""
        return None if self._asked_at is None else self.answer_failed()

    @property
    def is_waiting(self) -> bool:
        """Whether the language model was asked and has not said a word yet."""
        return self._asked_at is not None

    def is_late(self, now: float) -> bool:
        """Return whether an answer should have begun by now."""
        return self._asked_at is not None and now - self._asked_at >= ANSWER_SECONDS

    def turn_ended(self, text: str, speech_seconds: float) -> Remedy | None:
        """The caller stopped speaking after so many seconds of speech; ``text`` is what was understood."""
        if text:
            self._unheard_turns = 0
        if text or speech_seconds < SPEECH_SECONDS:
            return None
        self._unheard_turns += 1
        if self._unheard_turns < UNHEARD_TURNS:
            return None
        return Remedy.APOLOGISE if self._unheard_turns == UNHEARD_TURNS else Remedy.GIVE_UP
