"""When a call got how far, as only its agent knows: told with the next heartbeat, shown by /metrics."""

import time
from enum import StrEnum


class Stage(StrEnum):
    """What an agent reaches after its claim; the first time counts."""

    JOINED = "joined"
    """It is in the session's room; at once, when it has waited in it."""
    BUILT = "built"
    """Its pipeline is there."""
    CONNECTED = "connected"
    """Its vendors are connected, as far as the pipeline waits for them; after a wait in the line not before its
    caller is in the room."""
    FIRST_SOUND = "first_sound"
    """The opening line is heard."""


class Stages:
    """Milliseconds from the claim to each stage."""

    def __init__(self) -> None:
        self._claimed_at: float | None = None
        self._reached: dict[str, int] = {}
        self._untold: dict[str, int] = {}

    def begin(self) -> None:
        """The claim was heard."""
        self._claimed_at = time.monotonic()

    def reach(self, stage: Stage) -> None:
        """Note a stage; again, or without a claim, changes nothing."""
        if self._claimed_at is None or stage in self._reached:
            return
        self._reached[stage] = self._untold[stage] = int((time.monotonic() - self._claimed_at) * 1000)

    def untold(self) -> dict[str, int]:
        """What Redis has not heard of."""
        return dict(self._untold)

    def told(self, stages: dict[str, int]) -> None:
        """Redis has heard of these."""
        for stage in stages:
            self._untold.pop(stage, None)
