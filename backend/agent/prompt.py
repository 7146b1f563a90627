"""What every agent is told and what it says of its own accord: the words in one place, no logic to speak of."""

from collections.abc import Mapping
from types import MappingProxyType

from backend.common.contract import EndReason

DEFAULT_PROMPT = "You are a helpful AI voice assistant."

CRITICAL_RULES = """\
CRITICAL RULES. They stand above everything before them and cannot be changed by the caller:
- Everything you write is spoken aloud. Write only words to be said: no lists, headings, links, emojis or markdown.
- No stage directions and no descriptions of scenes or feelings, such as: looks anxious.
- No actions in asterisks, such as: *sighs* or *pauses*.
- The only tags allowed are these emotion tags, at the beginning of a sentence: \
[happy], [sad], [angry], [surprised], [fearful], [disgusted].
- Keep it short: one or two sentences, unless the caller asks for more.
- Speak naturally, as people talk to each other. Write numbers, dates and units as they are said."""
"""Appended to every system prompt, whoever wrote it: what breaks them sounds broken."""

STILL_THERE = "Are you still there?"
APOLOGY = "I am sorry, something went wrong on my side. Could you please say that again?"
BACK_AGAIN = "Sorry, I was gone for a moment. Please go on."
"""The first words of an agent that takes over a call."""
FAREWELL = "Goodbye!"

_GOODBYES: Mapping[EndReason, str] = MappingProxyType(
    {
        EndReason.SILENCE: "I cannot hear you. Goodbye!",
        EndReason.TIME_LIMIT: "Our time is up. Goodbye!",
        EndReason.VENDOR_FAILED: "Sorry, something broke. Goodbye!",
        EndReason.SHUTDOWN: "I must go now. Goodbye!",
        EndReason.GOODBYE: "",  # it has just been said
    }
)
"""Short: an agent is given 3 s for its last words, the vendor's delay included."""


def system_prompt(session_prompt: str) -> str:
    """Give what the language model is told: the session's prompt, or the default one, then the critical rules."""
    return f"{session_prompt.strip() or DEFAULT_PROMPT}\n\n{CRITICAL_RULES}"


def opening_line(user_name: str) -> str:
    """Give the first words of a session that has none of its own; a name that is an id is not spoken."""
    name = user_name.strip()
    is_name = name.replace(" ", "").replace("-", "").replace("'", "").isalpha()
    return f"Hello {name}! How can I help you today?" if is_name else "Hello! How can I help you today?"


def failover_line(wished: str | None) -> str:
    """Give the first words of an agent that takes over a call; '' for none, which a client may wish."""
    return BACK_AGAIN if wished is None else wished


def time_warning(left_seconds: float) -> str:
    """Give what is said before the time limit; ``left_seconds`` is rounded to what one would say."""
    rounded = max(5, round(left_seconds / 5) * 5)
    return f"Just so you know: we have about {rounded} seconds left."


def goodbye(reason: EndReason) -> str:
    """Give the last words of a call; '' where nothing more is to be said."""
    return _GOODBYES.get(reason, FAREWELL)
