"""A link that leads nowhere: it notes what the bot says, and says what the test wants."""

import asyncio
from collections.abc import AsyncIterator, Callable

from backend.agent.briefing import Command, Turn
from backend.agent.stages import Stages
from backend.common.contract import EndReason, Order, Progress
from tests.waiting import wait_until_async


class FakeLink:
    """Implements ``Link`` for one bot in this process."""

    def __init__(self, *, may_speak: bool = True, left_seconds: float | None = 600.0) -> None:
        self.may_speak = may_speak
        """The answer to confirm()."""
        self.left_seconds = left_seconds
        """The answer to begin()."""
        self.progress: Callable[[], Progress] = Progress
        self.stages = Stages()
        self.confirmed = 0
        self.begun = 0
        self.ended: list[EndReason] = []
        self.turns: list[Turn] = []
        self._inbox: asyncio.Queue[Command] = asyncio.Queue()

    async def confirm(self) -> bool:
        """Give the answer that the test set."""
        self.confirmed += 1
        return self.may_speak

    async def caller_came(self) -> bool:
        """Nobody can know."""
        return False

    async def begin(self) -> float | None:
        """Give the answer that the test set."""
        self.begun += 1
        return self.left_seconds

    async def record(self, turn: Turn) -> None:
        """Note it."""
        self.turns.append(turn)

    async def end(self, reason: EndReason) -> None:
        """Note it."""
        self.ended.append(reason)

    async def commands(self) -> AsyncIterator[Command]:
        """Yield what the test tells."""
        while True:
            yield await self._inbox.get()

    def tell(self, order: Order, text: str = "", *, reason: EndReason | None = None) -> None:
        """Put a command into the bot's inbox."""
        self._inbox.put_nowait(Command(order=order, text=text, reason=reason))

    async def recorded(self, words: str, *, timeout: float = 15.0) -> Turn:  # noqa: ASYNC109  # names what is waited for
        """Wait for a turn that holds these words."""

        def found() -> Turn | None:
            return next((turn for turn in self.turns if words.lower() in turn.text.lower()), None)

        turn = await wait_until_async(found, timeout=timeout, what=f"a turn with {words!r} in {self.turns}")
        assert turn
        return turn
