"""Which host gives the next agent, which starts one, who is let go, and what is remembered of the callers."""

import random
from dataclasses import replace

import pytest

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent
from backend.common.limits import Limits
from backend.orchestrator import demand
from tests.integration.desk import FAST, Desk
from tests.valkey_server import Valkey


@pytest.fixture
def calm(valkey: Valkey) -> Desk:
    """The exchange with the product's times: what a test does not make old is fresh."""
    return Desk(valkey, Limits())


def make_old(desk: Desk, *names: str, host: str = "h") -> None:
    """Let agents have been warm for long, the first one longest."""
    desk.client.zadd(keys.host_warm(host), {name: place for place, name in enumerate(names, 1)})


# -- who is claimed


def test_the_least_loaded_host_gives_the_agent(calm: Desk) -> None:
    calm.host("large", capacity=10)
    calm.host("small", capacity=2)
    for number in range(3):
        calm.agent(f"large{number}", host="large")
    calm.agent("small0", host="small")
    calm.agent("small1", host="small")
    served = [calm.session(f"s{number}").agent_id[:5] for number in range(5)]
    # Both are empty: by name. Then 1/10 against 0, 1/10 against 1/2, 2/10 against 1/2; large has no more.
    assert served == ["large", "small", "large", "large", "small"]


def test_agents_that_are_warm_or_starting_are_no_load(calm: Desk) -> None:
    calm.host("a", capacity=4)
    calm.reserve(target=2)
    for name in ("a1", "a2"):
        calm.agent(name, host="a")
    calm.agent("b1", host="b")
    calm.agent("b2", host="b")
    assert calm.session("s1").agent_id == "a2", "both have no call, and a is first by name"


def test_of_one_host_the_newest_agent_is_claimed(calm: Desk) -> None:
    for name in ("old", "new", "middle"):
        calm.agent(name)
    make_old(calm, "old", "middle", "new")
    assert [calm.session(f"s{number}").agent_id for number in range(3)] == ["new", "middle", "old"]


def test_an_agent_that_missed_a_heartbeat_is_passed_over_until_its_next_one(calm: Desk) -> None:
    calm.agent("busy", host="other")
    calm.session("s0")  # other has a call now: h is less loaded
    silent, _ = calm.agent("silent")
    calm.agent("fresh", host="other")
    calm.client.zadd(keys.POOL_READY, {"silent": calm.valkey.now_ms() - Limits().lease // 2 - 1})
    assert calm.session("s1").agent_id == "fresh"
    assert calm.client.zscore(keys.POOL_OFFERS, "h") is None
    calm.do(x.heartbeat(silent, None))
    calm.agent("fresher", host="other")
    assert calm.session("s2").agent_id == "silent"


def test_when_all_look_dead_the_one_last_heard_is_claimed(calm: Desk) -> None:
    for number in range(30):
        calm.agent(f"a{number}")
        calm.client.zadd(keys.POOL_READY, {f"a{number}": 1_000 + number % 7})
    assert calm.session().agent_id in {"a6", "a13", "a20", "a27"}


def test_an_agent_of_a_draining_host_is_not_offered_again_by_its_heartbeat(calm: Desk) -> None:
    agent, _ = calm.agent()
    calm.client.zrem(keys.POOL_READY, "a")  # as the launcher does while it drains
    assert calm.session("s1").state == "waiting"
    calm.end("s1")
    calm.do(x.heartbeat(agent, None))
    assert calm.client.zcard(keys.host_warm("h")) == 0
    assert calm.session("s2").state == "waiting"


# -- who starts one


def test_the_host_with_the_most_room_starts_the_next_agent(calm: Desk) -> None:
    calm.host("full", capacity=3)
    calm.host("empty", capacity=5)
    hosts = [agent.host_id for agent in calm.do(x.reserve_spawns(target=6, most=9, base="r")).agents]
    assert hosts == ["empty", "empty", "full", "empty", "full", "empty"]


def test_a_host_starts_as_many_at_once_as_it_has_cores_whoever_asks(calm: Desk) -> None:
    calm.host(cores=2)
    first = calm.reserve(target=5)
    assert len(first) == 2
    assert calm.reserve(target=5, base="r_2") == []
    calm.do(x.agent_arrives(Agent(id=first[0], nonce="n", host_id="h")))
    assert len(calm.reserve(target=5, base="r_3")) == 1
    calm.do(x.agent_exited(Agent(id=first[1], nonce="n", host_id="h"), exit_code=1))
    assert len(calm.reserve(target=5, base="r_4")) == 1


@pytest.mark.parametrize("why", ["unheard", "draining", "never heard"])
def test_a_host_that_takes_none_starts_none(calm: Desk, why: str) -> None:
    if why != "never heard":
        calm.host(is_open=why != "draining")
    calm.agent()
    if why == "unheard":
        calm.client.zadd(keys.HOSTS, {"h": calm.valkey.now_ms() - Limits().host_seen - 1})
    assert calm.reserve(target=3) == []
    calm.host()
    assert len(calm.reserve(target=3)) == 2


def test_a_single_missing_agent_waits_while_the_call_that_took_it_begins(calm: Desk) -> None:
    calm.host()
    for name in ("a", "b", "c"):
        calm.agent(name)
    calm.session("s1")
    assert calm.do(x.reserve_spawns(target=3, most=9, base="r_1")).missing == 0
    assert calm.client.scard(keys.POOL_STARTING) == 0
    calm.client.hincrbyfloat(keys.POOL_DEMAND, "at_ms", -Limits().call_begins)
    assert calm.reserve(target=3, base="r_2") == ["r_2_1"]


@pytest.mark.parametrize("why", ["a second caller", "half of the pool is gone", "the clock was set back", "one waits"])
def test_a_missing_agent_does_not_wait_when_the_next_caller_might(calm: Desk, why: str) -> None:
    calm.host()
    target = {"half of the pool is gone": 2, "one waits": 0}.get(why, 3)
    for name in "abc"[:target]:
        calm.agent(name)
    calm.session("s1")
    if why == "a second caller":
        calm.session("s2")
    if why == "the clock was set back":
        calm.client.hincrbyfloat(keys.POOL_DEMAND, "at_ms", 60_000)
    assert len(calm.reserve(target=target)) == (2 if why == "a second caller" else 1)


# -- who is let go


def test_the_oldest_warm_agents_of_the_fullest_host_are_let_go_and_never_below_the_target(calm: Desk) -> None:
    for name in ("a1", "a2", "b1", "b2"):
        calm.agent(name, host=name[0])
    calm.agent("b0", host="b")
    make_old(calm, "a1", "a2", host="a")
    make_old(calm, "b1", "b2", host="b")
    calm.client.zadd(keys.POOL_OFFERS, {"b": 0.5})
    assert calm.do(x.let_go(target=4, most=9)) == ("b1",)
    assert calm.do(x.let_go(target=3, most=1)) == ("b2",)
    assert calm.field("agent:b1", "state") == "stopping"
    assert [fields["command"] for _, fields in calm.client.xrange(keys.agent_inbox("b1"))] == ["end"]
    assert calm.do(x.let_go(target=3, most=9)) == ()
    assert calm.client.zcard(keys.POOL_READY) == 3


def test_an_agent_that_became_warm_a_moment_ago_stays(calm: Desk) -> None:
    calm.agent()
    assert calm.do(x.let_go(target=0, most=1)) == ()
    make_old(calm, "a")
    assert calm.do(x.let_go(target=0, most=1)) == ("a",)


# -- what is remembered of the callers


def known(desk: Desk) -> demand.Demand:
    return demand.read(desk.client.hgetall(keys.POOL_DEMAND))


def assert_same(found: demand.Demand, expected: demand.Demand) -> None:
    assert found.start_ms is expected.start_ms is None
    assert vars(replace(found, start_ms=0)) == pytest.approx(vars(replace(expected, start_ms=0)), rel=1e-9)


def test_redis_counts_callers_as_the_rule_does(calm: Desk) -> None:
    calm.do(x.reserve_spawns(target=0, most=1, base="r", cores=2))
    expected = known(calm)
    draw = random.Random(7)  # noqa: S311  # a test's own dice
    for number in range(40):
        calm.session(f"s{number}")
        made_at_ms = calm.number(f"session:s{number}", "created_at_ms")
        expected = demand.came(expected, made_at_ms, Limits())
        assert_same(known(calm), expected)
        # As if some time had passed, or the clock had been set back, before the next one.
        moved_ms = round(expected.at_ms) - draw.choice([0, 700, 9_000, 240_000, -5_000])
        calm.client.hset(keys.POOL_DEMAND, "at_ms", moved_ms)
        expected = replace(expected, at_ms=moved_ms)


def test_redis_measures_starts_as_the_rule_does(calm: Desk) -> None:
    calm.host()
    expected = demand.Demand()
    for number, start_ms in enumerate((400, 90, 2_000)):
        (agent_id,) = calm.reserve(target=number + 1, base=f"r{number}")
        reserved_at_ms = calm.number(f"agent:{agent_id}", "reserved_at_ms") - start_ms
        calm.client.hset(keys.agent(agent_id), "reserved_at_ms", reserved_at_ms)
        calm.do(x.agent_arrives(Agent(id=agent_id, nonce="n", host_id="h")))
        expected = demand.took(expected, calm.number(f"agent:{agent_id}", "warm_at_ms") - reserved_at_ms)
        assert known(calm).start_ms == pytest.approx(expected.start_ms)


def test_who_was_refused_is_no_caller_and_who_came_again_none_more(desk: Desk) -> None:
    desk.session("s1", start_key="u:k", body_hash="b")
    desk.session("s2", start_key="u:k", body_hash="b")
    desk.session("s3", fleet_ceiling=1)
    assert known(desk).arrivals == 1
    assert 0 < desk.client.pttl(keys.POOL_DEMAND) <= FAST.demand_ttl
