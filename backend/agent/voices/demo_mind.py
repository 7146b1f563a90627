"""In the language model's place: an answer by rule to what was said or typed."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import cycle

from pipecat.frames.frames import (
    Frame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from backend.agent.voices.demo_topics import HINT, JOKES, TOPICS, UNCLEAR, Topic
from backend.agent.voices.shared import Facts, GoodbyeFrame

_LEAST_SHARE = 0.8
"""Share of a question's words that a typed text must have to be that question."""
_LEAST_LIKENESS = 0.45
"""Twice the words in common by the words of both: a question that drowns in other words is none."""
_ENDING_LIKENESS = 0.6
"""For what ends the call: "I do not want to say goodbye yet" must not."""


def normalised(text: str) -> str:
    """Give the words alone, in lower case."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def find(text: str) -> Topic | None:
    """Find what a text asks about, word for word or nearly so; None when it is nothing we know."""
    words = set(normalised(text.replace(UNCLEAR, " ")).split())
    likely = [(_likeness(words, set(normalised(ask).split())), topic) for topic in TOPICS for ask in _asks(topic)]
    fitting = [(share, topic) for share, topic in likely if share >= _least(topic)]
    return max(fitting, key=lambda found: found[0])[1] if fitting else None


def _asks(topic: Topic) -> tuple[str, ...]:
    return topic.spoken + topic.typed


def _least(topic: Topic) -> float:
    return _ENDING_LIKENESS if topic.ends_call else _LEAST_LIKENESS


def _likeness(words: set[str], ask: set[str]) -> float:
    common = len(words & ask)
    return 2 * common / (len(words) + len(ask)) if common / len(ask) >= _LEAST_SHARE else 0.0


def duration(seconds: float) -> str:
    """Say how long that is."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    parts = [_counted(minutes, "minute")] if minutes else []
    return " and ".join([*parts, _counted(rest, "second")] if rest or not parts else parts)


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" + ("" if number == 1 else "s")


class Rules:
    """Answers texts; remembers which joke and which hint come next."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._jokes = cycle(JOKES)
        self._examples = cycle([topic.spoken[0] for topic in TOPICS if not topic.ends_call])
        self._values: Mapping[str, Callable[[], str]] = {
            "talked": lambda: duration(facts.talked_seconds()),
            "left": self._left,
            "agent": lambda: _spelled(facts.agent_id),
            "host": lambda: facts.host_id,
            "session": lambda: _spelled(facts.session_id),
            "time": lambda: f"{datetime.now().astimezone():%H:%M}",
            "day": lambda: f"{datetime.now().astimezone():%A, %B %-d}",
            "joke": lambda: next(self._jokes),
            "examples": lambda: " ".join(next(self._examples) for _ in range(3)),
            "name": lambda: f"You said that you are {facts.user_name}." if facts.user_name else "You did not tell me.",
            "handovers": self._handovers,
        }

    def answer(self, text: str, last_answer: str) -> tuple[str, bool]:
        """Give the answer, and whether it ends the call; ``last_answer`` is what the caller heard before."""
        topic = find(text)
        reply = topic.reply if topic else HINT
        values = {name: value() for name, value in self._values.items() if f"{{{name}}}" in reply}
        return reply.format(**values, last=last_answer or HINT.partition(".")[0]), bool(topic and topic.ends_call)

    def _left(self) -> str:
        left = self._facts.left_seconds()
        return "There is no limit." if left is None else f"We have {duration(left)} left."

    def _handovers(self) -> str:
        times = self._facts.generation - 1
        if times <= 0:
            return "Not once. I am the first agent of this call."
        return f"{_counted(times, 'time')}. I took over in the middle of the call."


class DemoMind(FrameProcessor):
    """Answers the last thing that the caller said."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self._rules = Rules(facts)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer a context; pass everything else on."""
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMContextFrame):
            await self.push_frame(frame, direction)
            return
        text, ends_call = self._rules.answer(_last(frame.context, "user"), _last(frame.context, "assistant"))
        await self.push_frame(LLMFullResponseStartFrame())
        await self.push_frame(LLMTextFrame(text))
        await self.push_frame(LLMFullResponseEndFrame())
        if ends_call:
            await self.push_frame(GoodbyeFrame())


def _last(context: LLMContext, role: str) -> str:
    """Give the last text of this role; '' when the last user message is no answer to anything, as after a cough."""
    messages = [message for message in context.get_messages() if isinstance(message, dict)]
    if role == "user" and messages and messages[-1].get("role") != "user":
        return ""
    content = next((message.get("content") for message in reversed(messages) if message.get("role") == role), "")
    return content if isinstance(content, str) else ""


def _spelled(name: str) -> str:
    """Give the last four signs, one by one: nobody can remember more by ear."""
    return " ".join(sign for sign in name if sign.isalnum())[-7:].upper()
