"""Whatever dies, repeats, comes late or is forgotten, the exchange keeps its promises.

Time is not waited for: a lease lapses because the test moves its deadline into the past.
"""

import itertools
import os
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, End, EndReason, Start
from backend.common.limits import Limits
from backend.orchestrator import placement
from tests import leaks
from tests.fakes.fake_process import FakeProcess
from tests.valkey_server import Valkey

EXAMPLES = int(os.environ.get("EXAMPLES", "60"))
"""Runs of up to 40 steps: 60 are enough for a change elsewhere, some hundreds for one of the Lua."""
HOSTS = ("h1", "h2")
CAPACITY, CORES = 4, 2
DEADLINES_OF = {
    "starting": ["agent"],
    "warm": ["agent"],
    "claimed": ["agent", "claim"],
    "busy": ["agent"],
    "stopping": ["stop"],
    "gone": [],
}


class ExchangeMachine(RuleBasedStateMachine):
    """Callers, agents, hosts and sweeps in any order, on one Valkey."""

    url: str
    """Of a running Valkey; set before the first run."""

    def __init__(self) -> None:
        super().__init__()
        self.client: Any = redis.Redis.from_url(self.url, decode_responses=True)
        self.bytes_client: Any = redis.Redis.from_url(self.url)  # DUMP and RESTORE are not text
        self.exchange = x.Exchange(limits=Limits(call_begins=0))  # what a step does must not depend on the time
        self.processes: list[FakeProcess] = []
        self.numbers = itertools.count(1)
        self.started: dict[str, tuple[str, str]] = {}
        self.ends: dict[str, End] = {}
        self.spoke: dict[tuple[str, int], str] = {}
        self.saved: dict[bytes, tuple[bytes, int]] = {}
        self.forgets = False
        self.in_order_of_arrival: list[str] = []

    # -- steps -----------------------------------------------------------------------------

    @initialize(forgets=st.booleans())
    def an_empty_redis(self, forgets: bool) -> None:
        self.forgets = forgets
        self.client.flushall()
        self.client.script_flush()
        self.sweep()

    def do(self, call: x.Call[x.Reply]) -> x.Reply:
        return self.exchange.run_sync(self.client, call)

    @rule(user=st.sampled_from("ab"), key=st.sampled_from(["", "k1", "k2"]), body=st.sampled_from("xy"))
    def a_session_arrives(self, user: str, key: str, body: str) -> None:
        proposed = f"session_{next(self.numbers)}"
        had_warm = self.client.zcard(keys.POOL_READY)
        start = Start(
            proposed_id=proposed,
            user_id=user,
            fleet_ceiling=8,
            user_ceiling=5,
            longest_ms=600_000,
            start_key=key and f"{user}:{key}",
            body_hash=body,
            room_token=f"token {proposed}",
            prompt={"opening_line": "Hello!"} if body == "x" else {},
        )
        arrival = self.do(x.session_arrives(start))
        if arrival.outcome == "new":
            assert (arrival.state == "assigned") == bool(had_warm)
            self.in_order_of_arrival.append(arrival.session_id)
        if key and arrival.outcome in ("new", "again"):
            assert self.started.setdefault(user + key, (body, arrival.session_id)) == (body, arrival.session_id)

    @rule(open_hosts=st.sets(st.sampled_from(HOSTS)), wanted=st.integers(0, 3), in_room=st.booleans())
    def the_hosts_report_and_refill(self, open_hosts: set[str], wanted: int, in_room: bool) -> None:
        for host in HOSTS:
            fields = {"capacity": CAPACITY, "cores": CORES}
            self.do(x.host_reports(host, fields, is_open=host in open_hosts))
        reserved = self.do(x.reserve_spawns(target=wanted, most=3, base=f"r_{next(self.numbers)}"))
        for agent in reserved.agents:
            assert agent.host_id in open_hosts
            self.fork(agent.id, agent.host_id, in_room=in_room)
        coming = self.client.scard(keys.POOL_STARTING) + self.client.zcard(keys.POOL_READY)
        needed = wanted + self.client.zcard(keys.SESSION_WAITING)
        assert not reserved.agents or coming <= needed, "spawned too many"
        assert reserved.missing == max(0, needed - coming)
        assert all(self.client.scard(keys.host_agents(host)) <= CAPACITY for host in HOSTS)

    @rule(wanted=st.integers(0, 2), are_old=st.booleans())
    def the_target_falls(self, wanted: int, are_old: bool) -> None:
        before = self.client.zcard(keys.POOL_READY)
        for host in HOSTS if are_old else ():
            for agent_id in self.client.zrange(keys.host_warm(host), 0, -1):
                self.client.zadd(keys.host_warm(host), {agent_id: 1})
        gone = self.do(x.let_go(target=wanted, most=2))
        assert len(gone) == before - self.client.zcard(keys.POOL_READY)
        assert not gone or self.client.zcard(keys.POOL_READY) >= wanted, "too many were let go"

    def everyone(self) -> list[object]:
        """Who is open, waits, is warm, starts, and who has whom."""
        names = self.client.zrange(keys.SESSION_OPEN, 0, -1)
        pairs = [self.client.hmget(keys.session(name), "state", "agent_id", "generation", "ticket") for name in names]
        lists = [sorted(self.client.zrange(key, 0, -1)) for key in (keys.SESSION_WAITING, keys.POOL_READY)]
        return [names, pairs, lists, self.client.smembers(keys.POOL_STARTING)]

    def fork(self, agent_id: str, host: str, *, in_room: bool) -> None:
        nonce = f"n{next(self.numbers)}"
        room = f"session_own_{nonce}" if in_room else ""
        agent = Agent(id=agent_id, nonce=nonce, host_id=host)
        self.processes.append(FakeProcess(exchange=self.exchange, client=self.client, agent=agent, room=room))

    def pick(self, data: st.DataObject) -> FakeProcess:
        return data.draw(st.sampled_from(self.processes))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def a_spawn_command_is_delivered_twice(self, data: st.DataObject) -> None:
        first = self.pick(data)
        self.fork(first.agent.id, first.agent.host_id, in_room=False)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def an_agent_arrives(self, data: st.DataObject) -> None:
        process = self.pick(data)
        head = self.client.zrange(keys.SESSION_WAITING, 0, 0)
        if not process.is_alive or process.assignment:
            return
        before = self.client.hget(f"agent:{process.agent.id}", "state")
        process.arrive()
        if process.assignment and before in (None, "starting", "warm"):
            assert [process.assignment.session_id] == head, "somebody was overtaken"

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def an_arrival_is_delivered_twice(self, data: st.DataObject) -> None:
        process = self.pick(data)
        state, nonce = self.client.hmget(f"agent:{process.agent.id}", "state", "nonce")
        has_arrived = state in ("warm", "claimed", "busy") and nonce == process.agent.nonce
        if not process.is_alive or (process.assignment and not has_arrived):
            return
        first, before = self.do(x.agent_arrives(process.agent)), self.everyone()
        again = self.do(x.agent_arrives(process.agent))
        assert (again, self.everyone()) == (first, before), "a repeated arrival changed who has whom"
        process.hear(again)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), step=st.sampled_from(["read_inbox", "confirm", "begin", "beat", "beat"]))
    def an_agent_goes_on(self, data: st.DataObject, step: str) -> None:
        process = self.pick(data)
        if not process.is_alive or (step in ("confirm", "begin") and not process.assignment):
            return
        getattr(process, step)()

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), said_goodbye=st.booleans(), times=st.integers(0, 2))
    def an_agent_exits_and_is_reported(self, data: st.DataObject, said_goodbye: bool, times: int) -> None:
        process = self.pick(data)
        process.is_alive = process.may_speak = False
        reason = EndReason.GOODBYE if said_goodbye and process.assignment else None
        known = self.client.hget(f"agent:{process.agent.id}", "nonce")
        for attempt in range(times):
            report = self.do(x.agent_exited(process.agent, exit_code=-9, end_reason=reason))
            assert attempt == 0 or not report.is_first
            assert known in (None, process.agent.nonce) or not report.is_first, "not its process"

    @rule(data=st.data(), by_agent=st.booleans())
    def a_session_is_ended(self, data: st.DataObject, by_agent: bool) -> None:
        holders = [process for process in self.processes if process.assignment]
        if by_agent and holders:
            assignment = data.draw(st.sampled_from(holders)).assignment
            assert assignment
            self.note_end(assignment.session_id, assignment.generation)
            return
        session_ids = self.client.zrange(keys.SESSION_OPEN, 0, -1) + list(self.ends)
        if session_ids:
            self.note_end(data.draw(st.sampled_from(session_ids)), None)

    def note_end(self, session_id: str, generation: int | None) -> None:
        current = self.client.hmget(f"session:{session_id}", "generation", "state")
        end = self.do(x.end_session(session_id, EndReason.CLIENT_END, generation=generation))
        if generation is not None and current[1] != "ended" and current[0] != str(generation):
            assert end is None, "a stale agent ended somebody else's call"
        if end:
            known = self.ends.setdefault(session_id, end)
            assert (known.ended_at_ms, known.billed_ms) == (end.ended_at_ms, end.billed_ms)
            assert known is end or not end.is_first, "ended twice"

    @rule(data=st.data(), event=st.sampled_from(["participant_joined", "participant_left", "room_finished"]))
    def livekit_sends_an_event_twice(self, data: st.DataObject, event: str) -> None:
        session_ids = ["foreign", *self.client.zrange(keys.SESSION_ALL, 0, -1)]
        call = x.livekit_event(
            f"e{next(self.numbers)}",
            session_id=data.draw(st.sampled_from(session_ids)),
            event=event,
            room_sid=data.draw(st.sampled_from(["RM_1", "RM_2"])),
            participant_sid=data.draw(st.sampled_from(["PA_1", "PA_2"])),
        )
        assert self.do(call) != "again"
        assert self.do(call) == "again"

    @rule(data=st.data())
    def deadlines_pass(self, data: st.DataObject) -> None:
        members = self.client.zrange(keys.DEADLINES, 0, -1)
        if members:
            passed = data.draw(st.lists(st.sampled_from(members), min_size=1, max_size=4, unique=True))
            self.client.zadd(keys.DEADLINES, {member: place for place, member in enumerate(passed, 1)})
            self.sweep()

    @rule()
    def everything_lapses_while_nobody_could_renew(self) -> None:
        deadlines = dict(self.client.zrange(keys.DEADLINES, 0, -1, withscores=True))
        if not deadlines:
            return
        self.client.zadd(keys.DEADLINES, dict.fromkeys(deadlines, 1))
        self.client.hset(keys.SWEEP, mapping={"swept_at_ms": 1, "quiet_until_ms": 1})
        assert self.do(x.expire_leases(most=1000)).kill == (), "a mass failover after a freeze"
        self.client.zadd(keys.DEADLINES, deadlines)

    def sweep(self) -> None:
        self.client.hset(keys.SWEEP, mapping={"swept_at_ms": self.now_ms(), "quiet_until_ms": 0})
        self.do(x.expire_leases())  # whom it says to kill lives on here: the host may be cut off

    def now_ms(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    @precondition(lambda self: self.forgets)
    @rule()
    def redis_restarts_empty(self) -> None:
        self.client.flushall()
        self.forget()

    @precondition(lambda self: self.forgets)
    @rule()
    def a_backup_is_taken(self) -> None:
        self.saved = {
            key: (self.bytes_client.dump(key), max(0, self.client.pttl(key))) for key in self.bytes_client.scan_iter()
        }

    @precondition(lambda self: self.saved)
    @rule()
    def redis_restarts_with_what_it_knew_earlier(self) -> None:
        self.client.flushall()
        for key, (value, ttl) in self.saved.items():
            self.bytes_client.restore(key, ttl, value)
        self.forget()

    def forget(self) -> None:
        """What was promised about the past holds within one history of Redis only."""
        self.started.clear()
        self.ends.clear()
        self.spoke.clear()
        for process in self.processes:  # as after any reconnect: they beat, and are told or tell
            if process.is_alive and (process.assignment or self.client.exists(f"agent:{process.agent.id}")):
                process.beat()

    # -- promises --------------------------------------------------------------------------

    @invariant()
    def every_open_session_has_an_agent_or_is_in_the_line_once(self) -> None:
        line = set(self.client.zrange(keys.SESSION_WAITING, 0, -1))
        open_sessions = set(self.client.zrange(keys.SESSION_OPEN, 0, -1))
        assert line <= open_sessions
        assert not (line and self.client.zcard(keys.POOL_READY)), "a session waits beside a warm agent"
        for session_id in open_sessions:
            session = self.text(f"session:{session_id}")
            if session_id in line:
                assert (session["state"], session["agent_id"]) == ("waiting", "")
                continue
            assert session["state"] in ("assigned", "live")
            agent = self.text(f"agent:{session['agent_id']}")
            assert agent["state"] in ("claimed", "busy")
            assert (agent["session_id"], agent["generation"]) == (session_id, session["generation"])

    @invariant()
    def the_line_keeps_the_order_of_arrival_also_for_those_who_lost_their_agent(self) -> None:
        line = list(self.client.zrange(keys.SESSION_WAITING, 0, -1))
        assert line == sorted(line, key=self.in_order_of_arrival.index)

    @invariant()
    def every_agent_has_one_session_a_slot_and_the_right_deadlines(self) -> None:
        expected = {f"limit:{s}" for s in self.client.zrange(keys.SESSION_OPEN, 0, -1)}
        expected |= {f"waiting:{s}" for s in self.client.zrange(keys.SESSION_WAITING, 0, -1)}
        warm = set(self.client.zrange(keys.POOL_READY, 0, -1))
        slots = {a: h for h in HOSTS for a in self.client.smembers(f"host:{h}:agents")}
        for key in self.client.keys("agent:*"):
            agent_id = key.removeprefix("agent:")
            if agent_id.endswith((":inbox", ":pid")):
                continue
            agent = self.text(key)
            assert (agent["state"] == "warm") == (agent_id in warm)
            assert (agent["state"] == "gone") == (agent_id not in slots)
            if agent["state"] in ("claimed", "busy"):
                assert self.text(f"session:{agent['session_id']}")["agent_id"] == agent_id
            expected |= {f"{kind}:{agent_id}" for kind in DEADLINES_OF[agent["state"]]}
        deadlines = set(self.client.zrange(keys.DEADLINES, 0, -1))
        assert deadlines == expected, "something would leak, or expire that should not"

    @invariant()
    def the_live_sessions_are_listed_so_that_they_can_be_counted(self) -> None:
        open_sessions = self.client.zrange(keys.SESSION_OPEN, 0, -1)
        live = {name for name in open_sessions if self.client.hget(keys.session(name), "state") == "live"}
        assert self.client.smembers(keys.SESSION_LIVE) == live

    @invariant()
    def every_host_stands_where_the_rules_of_placement_put_it(self) -> None:
        records = {key.removeprefix("agent:"): self.text(key) for key in self.client.keys("agent:*[0-9]")}
        for host in HOSTS:
            slots = self.client.smembers(keys.host_agents(host))
            starting = self.client.smembers(keys.host_starting(host))
            warm = self.client.zrange(keys.host_warm(host), 0, -1)
            assert {records[agent_id]["state"] for agent_id in warm} <= {"warm"}
            assert starting == {a for a in slots if records[a]["state"] == "starting"}
            assert starting <= self.client.smembers(keys.POOL_STARTING)
            capacity, cores = (int(value or 0) for value in self.client.hmget(keys.host(host), "capacity", "cores"))
            now = placement.Occupancy(
                capacity=capacity, cores=cores, slots=len(slots), starting=len(starting), warm=len(warm)
            )
            assert self.client.zscore(keys.POOL_OFFERS, host) == placement.load(now)
            place = self.client.zscore(keys.POOL_PLACES, host)
            assert place in (None, placement.room(now))
            assert place is not None or placement.room(now) is None or not self.client.zscore(keys.HOSTS, host)

    @invariant()
    def only_one_process_may_speak_for_a_session_at_one_generation(self) -> None:
        for process in self.processes:
            if process.may_speak and process.assignment:
                claim = (process.assignment.session_id, process.assignment.generation)
                assert self.spoke.setdefault(claim, process.agent.nonce) == process.agent.nonce

    @invariant()
    def every_session_is_listed_and_an_ended_one_has_no_secrets_left(self) -> None:
        ended = set(self.client.zrange(keys.SESSION_ENDED, 0, -1))
        is_open = set(self.client.zrange(keys.SESSION_OPEN, 0, -1))
        assert ended | is_open == set(self.client.zrange(keys.SESSION_ALL, 0, -1))
        assert not ended & is_open
        for session_id in ended:
            assert self.text(keys.session(session_id))["state"] == "ended"
            assert not self.client.hexists(keys.session(session_id), "room_token")
            assert not self.client.exists(keys.session_prompt(session_id), keys.session_pid(session_id))

    @invariant()
    def no_key_outlives_its_owner(self) -> None:
        assert leaks.leaked_keys(self.client) == []

    def text(self, key: str) -> dict[str, str]:
        return dict(self.client.hgetall(key))

    def teardown(self) -> None:
        """With every agent dead and every deadline passed, nothing is left but tombstones."""
        for _ in range(20):
            members = self.client.zrange(keys.DEADLINES, 0, -1)
            if not members:
                break
            self.client.zadd(keys.DEADLINES, dict.fromkeys(members, 1))
            self.sweep()
        for session_id in self.client.zrange(keys.SETTLE_DUE, 0, -1):
            self.do(x.session_settled(session_id))
        lists = {keys.SWEEP, keys.SESSION_ALL, keys.SESSION_ENDED, keys.FLEET_COUNTS, keys.HOSTS, keys.POOL_PLACES}
        left = [key for key in self.client.scan_iter() if self.client.pttl(key) == -1 and key not in lists]
        assert left == []
        self.client.close()
        self.bytes_client.close()


class TestExchange(ExchangeMachine.TestCase):  # type: ignore[valid-type, misc]  # made by hypothesis
    pytestmark = pytest.mark.timeout(60 + 2 * EXAMPLES)

    @pytest.fixture(autouse=True)
    def _a_valkey(self, valkey: Valkey) -> None:
        ExchangeMachine.url = valkey.url


TestExchange.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate] if os.environ.get("FAST") else list(Phase),  # mutants need no smallest example
)
