"""Every call accounted for: what the caller had against what is on record. The rules, without the product."""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.soak.calls import Placed

EXACT_SECONDS = 1.0
"""How far the billed time may be from what the caller held."""
SUCCESSOR_SECONDS = 1.0
"""Beside that for each lost agent: from a successor's leave to speak to its first sound at the caller."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """One call, from both sides."""

    call: Placed
    record: Mapping[str, str]
    """The session's hash in Redis."""
    is_mute: bool = False
    """Whether an agent of it fell silent and went on answering: nobody can tell that from one who listens."""

    @property
    def billed_ms(self) -> int:
        """What the session came to; 0 when it never began."""
        if not self.record.get("started_at_ms") or not self.record.get("ended_at_ms"):
            return 0
        return (
            int(self.record["ended_at_ms"]) - int(self.record["started_at_ms"]) - int(self.record.get("silent_ms") or 0)
        )

    @property
    def lost_agents(self) -> int:
        """How many agents the session lost."""
        return int(self.record.get("generation") or 1) - 1

    @property
    def over_seconds(self) -> float:
        """Billed beyond what the caller held; negative: less than that."""
        return self.billed_ms / 1000 - self.call.held_seconds

    @property
    def dead_seconds_billed(self) -> float:
        """Billed beyond what the caller heard."""
        return self.billed_ms / 1000 - self.call.heard_seconds

    def faults(self) -> list[str]:
        """What is wrong with it."""
        found = []
        record = self.record
        if record.get("state") != "ended":
            return [f"is {record.get('state', 'not on record')}"]
        if not record.get("end_reason") or not record.get("ended_by"):
            found.append("has no end reason")
        if not record.get("settled_at_ms"):
            found.append("is not settled")
        if record.get("conversationDuration", "0") != str(max(0, self.billed_ms) // 1000):
            found.append(f"shows {record.get('conversationDuration')} s of {self.billed_ms} ms")
        return found + self._wrong_seconds()

    def _wrong_seconds(self) -> list[str]:
        if self.call.failed:
            return []  # its end is not the caller's: only that it is on record is judged
        if self.over_seconds > EXACT_SECONDS:
            return [f"is billed {self.over_seconds:.1f} s more than it lasted"]
        if not self.lost_agents and self.over_seconds < -EXACT_SECONDS:
            return [f"is billed {-self.over_seconds:.1f} s less than it lasted"]
        allowed = EXACT_SECONDS + self.lost_agents * SUCCESSOR_SECONDS
        if self.lost_agents and not self.is_mute and self.dead_seconds_billed > allowed:
            return [f"is billed {self.dead_seconds_billed:.1f} s in which nothing was heard"]
        return []
