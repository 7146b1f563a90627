"""What the exchange's tests say, in short: the exchange with its client and a few defaults."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Arrival, Assignment, EndReason, Start
from backend.common.limits import Limits
from tests.valkey_server import Valkey
from tests.waiting import wait_until

FAST = Limits(lease=300, confirm=150, start=400, stop=200, sweep_gap=200, spawn=300)
"""The times of the product, some twenty times faster; they fit each other as those do."""

ROOMY = Start(proposed_id="s", user_id="u", longest_ms=600_000, fleet_ceiling=100, user_ceiling=100)


class Desk:
    """The exchange at one Valkey, whose sweeps are trusted from the start."""

    def __init__(self, valkey: Valkey, limits: Limits = FAST) -> None:
        self.valkey = valkey
        self.client = valkey.client
        self.limits = limits
        self.exchange = x.Exchange(limits=limits)
        self.trust_sweeps()

    def do(self, call: x.Call[x.Reply]) -> x.Reply:
        return self.exchange.run_sync(self.client, call)

    def trust_sweeps(self) -> None:
        """Say that sweeps came all the time: the first one after a gap only rests."""
        self.client.hset(keys.SWEEP, mapping={"swept_at_ms": self.valkey.now_ms(), "quiet_until_ms": 0})

    def host(self, name: str = "h", *, capacity: int = 10, cores: int = 10, is_open: bool = True) -> None:
        """Let a launcher report its host."""
        self.do(x.host_reports(name, {"capacity": capacity, "cores": cores}, is_open=is_open))

    def reserve(self, *, target: int = 1, most: int = 10, base: str = "h_1") -> list[str]:
        """Take slots for the agents that are missing; returns their ids."""
        return [agent.id for agent in self.do(x.reserve_spawns(target=target, most=most, base=base)).agents]

    def agent(
        self, name: str = "a", *, host: str = "h", pid: int = 0, **options: Any
    ) -> tuple[Agent, Assignment | str]:
        """Let an agent arrive."""
        agent = Agent(id=name, nonce=f"nonce-{name}", host_id=host, pid=pid)
        return agent, self.do(x.agent_arrives(agent, **options))

    def session(self, name: str = "s", **changes: Any) -> Arrival:
        """Let a session arrive."""
        return self.do(x.session_arrives(replace(ROOMY, proposed_id=name, **changes)))

    def assigned(self, name: str = "s", agent_name: str = "a") -> tuple[Agent, Assignment]:
        """A session with an agent that was claimed and has not confirmed."""
        agent, _ = self.agent(agent_name)
        return agent, Assignment(session_id=self.session(name).session_id, generation=1)

    def live(self, name: str = "s", agent_name: str = "a") -> tuple[Agent, Assignment]:
        """A session whose caller hears its agent."""
        agent, work = self.assigned(name, agent_name)
        assert self.do(x.confirm_claim(agent, work))
        assert self.do(x.begin_session(agent, work))
        return agent, work

    def end(self, name: str = "s") -> None:
        """Let the client end a session."""
        assert self.do(x.end_session(name, EndReason.CLIENT_END))

    def field(self, key: str, field: str) -> str:
        return str(self.client.hget(key, field) or "")

    def number(self, key: str, field: str) -> int:
        return int(self.client.hget(key, field))

    def due(self, member: str) -> int:
        """When a deadline passes, in ms of Redis' clock; 0 when there is none."""
        return int(self.client.zscore(keys.DEADLINES, member) or 0)

    def lapse(self, *members: str) -> tuple[Agent, ...]:
        """Let deadlines pass at once and sweep; returns who is to be killed."""
        self.client.zadd(keys.DEADLINES, {member: place for place, member in enumerate(members, 1)})
        self.trust_sweeps()
        return self.do(x.expire_leases()).kill

    def sweep_until(self, is_done: Callable[[list[Agent]], object], *, timeout: float = 5.0) -> list[Agent]:
        """Sweep as beat does, at a steady pace; ``is_done`` sees who is to be killed so far, and so does the caller."""
        kill: list[Agent] = []

        def sweep() -> object:
            kill.extend(self.do(x.expire_leases()).kill)
            return is_done(kill)

        wait_until(sweep, timeout=timeout)
        return kill
