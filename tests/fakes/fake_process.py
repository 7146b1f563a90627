"""An agent process as the exchange sees it: what it knows, and how it must answer a verdict."""

from dataclasses import dataclass, field
from typing import Any

from backend.common import keys
from backend.common.contract import REMEMBERED, Agent, Assignment, Order, Progress, Word
from backend.common.exchange import Exchange, agent_arrives, agent_returns, begin_session, confirm_claim, heartbeat


@dataclass(kw_only=True)
class FakeProcess:
    """One process; it lives until the exchange, or the test, says otherwise."""

    exchange: Exchange
    client: Any
    agent: Agent
    room: str
    """Its own room, '' when parked."""
    assignment: Assignment | None = None
    may_speak: bool = False
    is_alive: bool = True
    read_up_to: str = "0"
    frames: int = 0
    remembered: dict[str, str] = field(default_factory=dict)

    def arrive(self) -> None:
        call = agent_arrives(self.agent, room=self.room, room_token=f"token {self.room}" if self.room else "")
        self.hear(self.exchange.run_sync(self.client, call))

    def hear(self, reply: Assignment | str) -> None:
        """Take what an arrival was answered with."""
        if isinstance(reply, Assignment):
            self.take(reply)
        elif reply == "stale":
            self.is_alive = False

    def read_inbox(self) -> None:
        for entry_id, fields in self.client.xrange(keys.agent_inbox(self.agent.id), min=f"({self.read_up_to}"):
            self.read_up_to = entry_id
            self.obey(fields)

    def obey(self, fields: dict[str, str]) -> None:
        session_id = fields["session_id"]
        if fields["command"] == Order.ASSIGN:
            self.take(Assignment(session_id=session_id, generation=int(fields["generation"])))
        elif self.assignment is None or session_id in ("", self.assignment.session_id):
            self.is_alive = self.may_speak = False

    def take(self, assignment: Assignment) -> None:
        """An agent takes one session in its life; a second assignment is answered by agent_returns."""
        if self.assignment is None:
            self.assignment = assignment
            self.remember()
        elif assignment.session_id != self.assignment.session_id:
            self.return_to_call()

    def remember(self) -> None:
        """Keep what the record says, to give it back to a Redis that forgot."""
        assert self.assignment
        stored = self.client.hgetall(keys.session(self.assignment.session_id))
        self.remembered = {name: stored[name] for name in REMEMBERED if name in stored}

    def confirm(self) -> None:
        assert self.assignment
        self.may_speak = self.exchange.run_sync(self.client, confirm_claim(self.agent, self.assignment))
        self.is_alive = self.may_speak

    def begin(self) -> None:
        assert self.assignment
        if self.exchange.run_sync(self.client, begin_session(self.agent, self.assignment)):
            self.remember()

    def beat(self) -> None:
        self.frames += 1
        call = heartbeat(self.agent, self.assignment, Progress(frames=self.frames))
        verdict = self.exchange.run_sync(self.client, call)
        if verdict.word is Word.STOP:
            self.is_alive = self.may_speak = False
        elif verdict.assignment:
            self.take(verdict.assignment)
        elif verdict.word is Word.UNKNOWN and self.assignment is None:
            self.arrive()
        elif verdict.word is Word.UNKNOWN:
            self.return_to_call()

    def return_to_call(self) -> None:
        assert self.assignment
        call = agent_returns(self.agent, self.assignment, remembered=self.remembered)
        self.may_speak = self.is_alive = self.exchange.run_sync(self.client, call)
