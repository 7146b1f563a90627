"""What a bot is told of its session, and the link over which it answers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from backend.agent.stages import Stages
from backend.common.contract import EndReason, Order, Progress
from backend.common.tracing import NO_TRACE, Trace

if TYPE_CHECKING:
    from backend.agent.room import Room

Role = Literal["user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One finished turn of the conversation; the text never reaches a log."""

    role: Role
    text: str = field(repr=False)
    interrupted: bool = False


@dataclass(frozen=True, kw_only=True)
class Briefing:
    """One session as its agent knows it. Secrets and texts are kept out of ``repr``."""

    session_id: str
    """Also the room's name."""
    generation: int
    agent_id: str
    host_id: str
    livekit_url: str
    room_token: str = field(repr=False)
    user_name: str = ""
    voice_id: str = "Ashley"
    caller_identity: str = ""
    opening_line: str = field(default="", repr=False)
    """'' means: the bot's own greeting."""
    failover_line: str | None = field(default=None, repr=False)
    """What a successor says first: '' nothing, None the bot's own words."""
    system_prompt: str = field(default="", repr=False)
    """'' means: the bot's default."""
    longest_seconds: float
    was_awaited: bool = False
    """True where the session stood in the line: its caller is in the room by now, on the way, or gone."""
    has_begun: bool = False
    """True for a successor: the caller was already talking when the last agent was lost."""
    history: tuple[Turn, ...] = ()
    trace: Trace = field(default=NO_TRACE, repr=False, compare=False)
    """The agent's part of the session's trace."""
    joined: "Room | None" = field(default=None, repr=False, compare=False)
    """The session's room, where this agent has waited in it; None: join it."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One entry of the inbox, as a bot sees it."""

    order: Order
    text: str = field(default="", repr=False)
    """SAY: what to say. PROMPT: the new system prompt. END: '' or the goodbye."""
    reason: EndReason | None = None
    """END: why."""


class Link(Protocol):
    """A bot's way to the rest of the product: Redis for a launched agent, nothing for one that runs alone."""

    progress: Callable[[], Progress]
    """Set by the bot: asked at every heartbeat."""
    stages: Stages
    """Told by the bot how far it is."""

    async def confirm(self) -> bool:
        """Ask for leave to speak: once after joining the room, again after every reconnect. False: leave and return."""

    async def caller_came(self) -> bool:
        """Whether LiveKit said that the caller is in the room; False also where nobody can know. Never raises."""

    async def begin(self) -> float | None:
        """The caller can hear: start billed time. Returns seconds until the deadline; None: the session is not ours."""

    async def record(self, turn: Turn) -> None:
        """Keep a finished turn for a successor. Never raises: the call matters more."""

    async def end(self, reason: EndReason) -> None:
        """End the session now; its figures are final. A goodbye may follow for 3 s. Repeating it changes nothing."""

    def commands(self) -> AsyncIterator[Command]:
        """Yield what the inbox says (SAY, PROMPT, END), until the bot returns."""


Bot = Callable[[Briefing, Link], Awaitable[EndReason]]
"""Runs one session, from joining the room to leaving it, and says why it ended.

AGENT_LOST, AGENT_FAULT and SHUTDOWN do not end it: the session is another agent's by then, or becomes one's, because
this one had to leave it.
"""
