"""/metrics: the whole fleet as Redis knows it, and this process; answered whatever is away."""

import math
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from backend.agent.stages import Stage
from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, EndReason, Progress
from backend.orchestrator.metrics import LOOK_SECONDS
from backend.orchestrator.turns import STARTS_AT_ONCE
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import RunningApi, host_is_seen, running_api, silent_server
from tests.valkey_server import Valkey, free_port
from tests.waiting import wait_until_async

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"


class Scraped:
    """What one scrape showed."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in read_text(text)}
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """One sample of the fleet's or of the process' own."""
        return self.samples[f"greenroom_{name}", frozenset(labels.items())]

    def total(self, name: str) -> float:
        """A counter or a histogram's count over all its labels."""
        found = [value for (sample, _), value in self.samples.items() if sample == f"greenroom_{name}"]
        assert found, name
        return sum(found)


async def scrape(api: RunningApi, headers: Mapping[str, str] | None = None) -> Scraped:
    """Scrape a fleet whose Redis is well; a crowded machine may be too slow for one scrape."""

    async def read() -> Scraped | None:
        answer = await api.get("/metrics", headers=headers or {})
        assert answer.status == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        seen = Scraped(answer.text)
        return seen if seen.value("up", component="redis") == seen.value("up", component="broker") == 1 else None

    seen = await wait_until_async(read, what="Redis and the broker answer a scrape in time")
    assert seen
    return seen


async def test_every_counter_and_bucket_is_there_from_the_start_as_zero(api: RunningApi) -> None:
    seen = await scrape(api)
    assert seen.value("sessions_ended_total", reason="agent_lost", cause="platform") == 0
    assert seen.value("starts_refused_total", cause="line_age", code="at_capacity") == 0
    assert seen.value("start_stage_seconds_bucket", stage="can_hear", le="0.3") == 0
    route = {"route": "/session/start", "method": "POST"}
    assert seen.value("api_requests_total", **route, status="429") == 0
    assert seen.value("api_request_seconds_count", **route) == 0
    fleet = {key: value for key, value in seen.samples.items() if key[0].endswith(("_total", "_bucket", "_count"))}
    assert {key for key, value in fleet.items() if key[0].startswith("greenroom_") and value} == set()


async def test_the_gauges_are_those_of_the_whole_fleet(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey, "h", capacity=4)
    host_is_seen(valkey, "h2", capacity=6)
    await api.live("live")
    await api.agent("claimed")
    await api.started()  # assigned
    await api.started()  # waiting
    valkey.client.zincrby(keys.SESSION_WAITING, -7_000_000, valkey.client.zrange(keys.SESSION_WAITING, 0, 0)[0])
    await api.house.run(x.reserve_spawns(target=3, most=2, base="starting"))
    seen = await scrape(api)
    assert {state: seen.value("sessions", state=state) for state in ("waiting", "assigned", "live")} == {
        "waiting": 1,
        "assigned": 1,
        "live": 1,
    }
    assert {state: seen.value("agents", state=state) for state in ("starting", "warm", "busy")} == {
        "starting": 2,
        "warm": 0,
        "busy": 2,
    }
    assert (seen.value("pool_target"), seen.value("capacity"), seen.value("hosts")) == (6, 10, 2)
    assert 7 <= seen.value("waiting_oldest_seconds") < 12
    assert (seen.value("host_agents", host="h"), seen.value("host_agents", host="h2")) == (2, 2)
    assert 0 <= seen.value("host_seen_seconds", host="h2") < 5
    assert seen.value("redis_memory_bytes") > 100_000


async def test_a_call_is_counted_at_each_step_of_its_way(api: RunningApi) -> None:
    session_id, agent, work = await api.live()
    await api.house.run(x.heartbeat(agent, work))
    await api.house.run(x.heartbeat(Agent(id="a", nonce="stale", host_id="h"), work))
    await api.house.run(x.livekit_event("e", session_id=session_id, event="participant_joined", room_sid="R"))
    await api.end(session_id)
    await api.house.run(x.agent_exited(agent, exit_code=0))
    seen = await scrape(api)
    assert seen.value("sessions_started_total", outcome="assigned") == 1
    assert seen.value("claims_total", how="warm") == 1
    assert seen.value("sessions_ended_total", reason="client_end", cause="client") == 1
    assert seen.value("heartbeats_total", answer="keep") == 1
    assert seen.value("heartbeats_total", answer="stop") == 1
    assert seen.value("webhooks_total", event="participant_joined", outcome="taken") == 1
    assert seen.value("agents_exited_total", result="clean") == 1
    for stage in ("confirmed", "caller_joined", "can_hear"):
        assert seen.value("start_stage_seconds_bucket", stage=stage, le="+Inf") == 1
        assert seen.value("start_stage_seconds_bucket", stage=stage, le="10.0") == 1
    assert seen.value("session_billed_seconds_count") == 1
    assert seen.value("unsettled") == 1
    assert seen.value("api_room_made_seconds_count") == 1


async def test_an_agents_stages_are_counted_once_and_only_its_own_names(api: RunningApi) -> None:
    _, agent, work = await api.live()
    for stages in ({"joined": 20, "made_up": 1}, {"joined": 900, "first_sound": 180}, {}):
        await api.house.run(x.heartbeat(agent, work, Progress(stages=stages)))
    seen = await scrape(api)
    assert seen.value("agent_stage_seconds_sum", stage="joined") == 0.02
    assert seen.value("agent_stage_seconds_bucket", stage="joined", le="0.025") == 1
    assert seen.value("agent_stage_seconds_count", stage="first_sound") == 1
    assert seen.value("agent_stage_seconds_count", stage="built") == 0
    assert {dict(labels)["stage"] for name, labels in seen.samples if "agent_stage" in name} == set(Stage)


async def test_who_waits_is_in_the_histogram_of_waits_once_an_agent_comes(api: RunningApi, valkey: Valkey) -> None:
    session_id = await api.started()
    assert (await scrape(api)).value("wait_seconds_count") == 0
    valkey.client.hincrby(keys.session(session_id), "created_at_ms", -1_700)
    await api.agent()
    seen = await scrape(api)
    assert (seen.value("wait_seconds_bucket", le="1.5"), seen.value("wait_seconds_bucket", le="20.0")) == (0, 1)
    assert 1.7 <= seen.value("wait_seconds_sum") < 10
    assert seen.value("claims_total", how="line") == 1
    assert seen.value("sessions_started_total", outcome="waiting") == 1


async def test_a_lost_agent_is_a_failover_and_its_silence_is_measured(api: RunningApi) -> None:
    _, agent, work = await api.live()
    await api.house.run(x.agent_exited(agent, exit_code=-9))
    seen = await scrape(api)
    assert (seen.value("sessions", state="live"), seen.value("sessions", state="waiting")) == (0, 1)
    successor, assignment = await api.agent("b")
    assert not isinstance(assignment, str)
    assert await api.house.run(x.confirm_claim(successor, assignment))
    assert (await scrape(api)).value("failover_silence_seconds_count") == 0, "the caller does not hear it yet"
    await api.house.run(x.begin_session(successor, assignment))
    seen = await scrape(api)
    assert seen.value("sessions", state="live") == 1
    assert seen.value("failovers_total") == 1
    assert seen.value("agents_exited_total", result="killed") == 1
    assert seen.value("failover_silence_seconds_count") == 1
    assert seen.value("wait_seconds_count") == 0, "it had an agent before"
    assert seen.value("start_stage_seconds_count", stage="confirmed") == 1, "only its first one"
    assert work.generation == 1


async def test_agents_that_are_ordered_arrive_or_fail(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey, "h", cores=4)
    reserved = await api.house.run(x.reserve_spawns(target=9, most=4, base="n"))
    arrived, refused, exited, late = (replace(agent, nonce=agent.id) for agent in reserved.agents)
    await api.house.run(x.agent_arrives(arrived))
    await api.house.run(x.agent_exited(refused, exit_code=None))
    await api.house.run(x.agent_exited(exited, exit_code=1))
    valkey.client.zadd(keys.DEADLINES, {f"agent:{late.id}": 1})
    valkey.client.hset(keys.SWEEP, mapping={"swept_at_ms": valkey.now_ms(), "quiet_until_ms": 0})
    await api.house.run(x.expire_leases())
    seen = await scrape(api)
    assert seen.value("spawns_total") == 4
    assert seen.value("spawn_seconds_count") == 1
    assert [seen.value("spawns_failed_total", cause=cause) for cause in ("refused", "exited", "late")] == [1, 1, 1]
    assert seen.value("leases_lapsed_total", kind="agent") == 1
    assert 0 <= seen.value("sweep_age_seconds") < 10


async def test_refusals_are_counted_by_cause_and_by_the_code_of_the_answer(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(max_waiting=1, max_sessions_per_user=1)) as api:
        await api.started(key="one")
        assert (await api.start(userName="Bob")).status == 429
        assert (await api.start(key="one", userName="Bob")).status == 409
        seen = await scrape(api)
    assert seen.value("starts_refused_total", cause="fleet", code="at_capacity") == 1
    assert seen.value("starts_refused_total", cause="conflict", code="idempotency_key_reused") == 1
    start = {"route": "/session/start", "method": "POST"}
    assert [seen.value("api_requests_total", **start, status=code) for code in ("200", "429", "409")] == [1, 1, 1]
    assert seen.value("api_request_seconds_count", **start) == 3


async def test_every_instance_tells_the_same_of_the_fleet_and_its_own_of_itself(make_settings: MakeSettings) -> None:
    async with running_api(make_settings()) as one, running_api(make_settings()) as other:
        await one.started()
        await other.started()
        seen = [await scrape(api) for api in (one, other, one)]
    route = {"route": "/session/start", "method": "POST", "status": "200"}
    for scraped in seen:
        assert scraped.total("sessions_started_total") == 2
        assert scraped.value("api_requests_total", **route) == 1


async def test_the_age_of_the_oldest_command_is_seen_while_no_worker_takes_it(api: RunningApi) -> None:
    await api.house.commands.spawn("h", "a1")
    queues = await api.house.commands.queue_states(["h"])
    assert queues["host.h"].length == 1
    assert 0 < queues["host.h"].oldest_seconds < 10
    seen = await scrape(api)
    assert (seen.value("queue_length", queue="control"), seen.value("queue_oldest_seconds", queue="control")) == (0, 0)


async def test_with_redis_away_a_scrape_says_so_and_claims_nothing(api: RunningApi, valkey: Valkey) -> None:
    valkey.kill()
    answer = await api.get("/metrics")
    assert (answer.status, answer.seconds < 5 * LOOK_SECONDS) == (200, True)
    seen = Scraped(answer.text)
    assert seen.value("up", component="redis") == 0
    assert {name for name in seen.families if name.startswith("greenroom_")} == {
        "greenroom_up",
        "greenroom_api_requests",
        "greenroom_api_request_seconds",
        "greenroom_api_loop_lag_seconds",
        "greenroom_api_room_made_seconds",
        "greenroom_api_claim_seconds",
        "greenroom_api_starts_refused",
    }
    assert "process_resident_memory_bytes" in seen.families


async def test_a_frozen_redis_does_not_hang_a_scrape(make_settings: MakeSettings) -> None:
    async with silent_server() as address:
        settings = make_settings(redis_url=f"redis://{address}/0")
        async with running_api(settings) as api:
            answer = await api.get("/metrics")
    assert answer.status == 200
    assert answer.seconds < 5 * LOOK_SECONDS, "the machine may be slow, the answer may not hang"
    assert Scraped(answer.text).value("up", component="broker") == 0


async def test_with_api_keys_a_scrape_needs_one(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(api_keys=("k" * 20,))) as api:
        assert (await api.get("/metrics")).status == 401
        await scrape(api, {"Authorization": f"Bearer {'k' * 20}"})


async def test_openmetrics_is_served_to_who_asks_for_it(api: RunningApi) -> None:
    await api.started()
    answer = await api.get("/metrics", headers={"Accept": OPENMETRICS})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in read_openmetrics(answer.text)}  # type: ignore[no-untyped-call]  # the library's
    assert families["greenroom_sessions_started"].type == "counter"
    assert families["greenroom_wait_seconds"].type == "histogram"


async def test_made_up_paths_and_methods_share_one_label(api: RunningApi) -> None:
    for number in range(5):
        await api.get(f"/made/up/{number}")
        await api.ask(f"MADEUP{number}", "/stats")
    await api.get("/orchestrator/session/session_1762018728198_9f2c4e6a8b0d1f35")
    seen = await scrape(api)
    labels = [dict(labels) for (name, labels) in seen.samples if name == "greenroom_api_requests_total"]
    assert {label["method"] for label in labels} == {"GET", "POST", "other"}
    assert [label["route"] for label in labels if "made" in label["route"] or "session_1" in label["route"]] == []
    assert seen.value("api_requests_total", route="other", method="GET", status="404") == 5


@pytest.mark.parametrize("reason", [EndReason.TIME_LIMIT, EndReason.VENDOR_FAILED])
async def test_an_end_is_counted_once_however_often_it_is_told(api: RunningApi, reason: EndReason) -> None:
    session_id, _, _ = await api.live()
    for _ in range(3):
        await api.house.run(x.end_session(session_id, reason))
    seen = await scrape(api)
    assert seen.value("sessions_ended_total", reason=reason, cause=reason.cause) == 1
    assert seen.total("sessions_ended_total") == 1


async def test_the_buckets_of_a_histogram_add_up(api: RunningApi, valkey: Valkey) -> None:
    fields = {"wait:25": 3, "wait:1000": 2, "wait:inf": 1, "wait:sum": 70_030}
    valkey.client.hset(keys.FLEET_COUNTS, mapping=fields)
    seen = await scrape(api)
    assert [seen.value("wait_seconds_bucket", le=le) for le in ("0.025", "0.75", "1.0", "60.0", "+Inf")] == [
        3,
        3,
        5,
        5,
        6,
    ]
    assert seen.value("wait_seconds_count") == 6
    assert math.isclose(seen.value("wait_seconds_sum"), 70.03)


@pytest.mark.parametrize("cause", ["turn", "livekit", "redis", "rate"])
async def test_every_cause_of_a_refusal_by_the_api_is_there_from_the_start(api: RunningApi, cause: str) -> None:
    assert (await scrape(api)).value("api_starts_refused_total", cause=cause) == 0


async def test_a_start_that_livekit_does_not_answer_is_counted_as_its_refusal(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(livekit_url=f"ws://127.0.0.1:{free_port()}")) as api:
        assert (await api.start()).status == 503
        seen = await scrape(api)
    assert seen.value("api_starts_refused_total", cause="livekit") == seen.total("api_starts_refused_total") == 1


async def test_a_start_without_redis_is_counted_as_its_refusal_and_other_requests_are_not(
    api: RunningApi, valkey: Valkey
) -> None:
    valkey.kill()
    assert (await api.start()).status == 503
    assert (await api.get("/orchestrator/session/session_1762018728198_9f2c4e6a8b0d1f35")).status == 503
    seen = Scraped((await api.get("/metrics")).text)
    assert seen.value("api_starts_refused_total", cause="redis") == seen.total("api_starts_refused_total") == 1
    assert seen.value("api_claim_seconds_count") == 0


async def test_a_start_whose_turn_does_not_come_is_counted(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.orchestrator.turns.TURN_SECONDS", 0.1)
    async with AsyncExitStack() as others:
        for _ in range(STARTS_AT_ONCE):
            await others.enter_async_context(api.house.turns.one())
        answer = await api.start()
    assert (answer.status, answer.body["error"]) == (503, "unavailable")
    seen = await scrape(api)
    assert seen.value("api_starts_refused_total", cause="turn") == seen.total("api_starts_refused_total") == 1


async def test_a_start_above_the_rate_is_counted(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(api_keys="one", page="on", page_rate_limit="1/hour")) as api:
        cookie = (await api.get("/")).headers["Set-Cookie"].partition(";")[0]
        body = {"userName": "Ann"}
        answers = [await api.post("/orchestrator/session/start", body, Cookie=cookie) for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 429]
        seen = await scrape(api, {"Authorization": "Bearer one"})
    assert seen.value("api_starts_refused_total", cause="rate") == seen.total("api_starts_refused_total") == 1


async def test_each_claim_is_timed(api: RunningApi) -> None:
    await api.agent()
    await api.started()
    await api.started()
    seen = await scrape(api)
    assert seen.value("api_claim_seconds_count") == seen.value("api_claim_seconds_bucket", le="+Inf") == 2
    assert 0 < seen.value("api_claim_seconds_sum") < 2
