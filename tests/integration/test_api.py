"""A client starts, shows, lists and ends sessions, and comes back into its own."""

import asyncio
import time
from collections import Counter
from datetime import datetime
from typing import Any

import jwt
import pytest

from backend.common import keys
from backend.common.contract import Assignment
from backend.orchestrator import views
from backend.orchestrator.house import House
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import RunningApi, host_is_seen, running_api
from tests.livekit_server import LiveKitServer
from tests.valkey_server import Valkey

UNKNOWN = "session_1762018728198_0000000000000000"


def claims(token: str, livekit: LiveKitServer) -> Any:
    """What a token says, checked with the server's secret."""
    return jwt.decode(token, livekit.secret, algorithms=["HS256"], issuer=livekit.key)


# -- start


async def test_a_start_answers_with_the_way_into_a_room_that_exists(api: RunningApi, livekit: LiveKitServer) -> None:
    answer = await api.start(voiceId="Hades", openingLine="Hello", systemPrompt="Be kind", metadata={"crm": [1, None]})
    session_id = answer.body["sessionId"]
    assert answer.status == 200
    assert answer.body == {
        "success": True,
        "sessionId": session_id,
        "token": answer.body["token"],
        "serverUrl": livekit.url,
        "roomName": session_id,
        "message": "Session created. An agent is coming.",
        "status": "waiting",
    }
    word, made_ms, random = session_id.split("_")
    assert word == "session"
    assert abs(int(made_ms) - time.time() * 1000) < 10_000
    assert len(random) == 16
    assert await livekit.identities(session_id) == set()  # raises when there is no such room


async def test_a_start_takes_a_warm_agent(api: RunningApi, valkey: Valkey) -> None:
    await api.agent("a")
    answer = await api.start()
    assert (answer.body["status"], answer.body["message"]) == ("assigned", "Session created. An agent is with you.")
    assert (await api.show(answer.body["sessionId"]))["agentId"] == "a"
    assert valkey.client.zcard(keys.POOL_READY) == 0


async def test_an_agent_that_arrives_takes_the_session_that_waited_longest(api: RunningApi) -> None:
    first, second = await api.started(), await api.started()
    assert (await api.agent("a"))[1] == Assignment(session_id=first, generation=1)
    assert (await api.show(second))["status"] == "waiting"


@pytest.mark.parametrize("prefix", ["/orchestrator", "/api"])
async def test_the_session_paths_answer_under_both_prefixes(api: RunningApi, prefix: str) -> None:
    answer = await api.post(f"{prefix}/session/start", {"userName": "Ann"})
    session_id = answer.body["sessionId"]
    assert (await api.get(f"{prefix}/session/{session_id}")).body["sessionId"] == session_id
    assert [row["sessionId"] for row in (await api.get(f"{prefix}/sessions")).body["sessions"]] == [session_id]
    assert (await api.post(f"{prefix}/session/end", {"sessionId": session_id})).body["success"] is True


async def test_the_callers_token_opens_this_room_for_a_microphone_and_no_more(
    api: RunningApi, livekit: LiveKitServer
) -> None:
    answer = await api.start(userName="Ann Example")
    token = claims(answer.body["token"], livekit)
    assert token["video"] == {
        "roomJoin": True,
        "room": answer.body["roomName"],
        "canPublish": True,
        "canPublishSources": ["microphone"],
        "canSubscribe": True,
        "canPublishData": True,
        "canUpdateOwnMetadata": False,
    }
    assert 115 <= token["exp"] - time.time() <= 120
    assert token["name"] == "Ann Example"
    assert token.get("kind", "standard") == "standard"
    assert token["sub"].startswith("caller_")


async def test_the_agents_token_is_of_kind_agent_and_outlives_the_longest_session(
    make_settings: MakeSettings, livekit: LiveKitServer, valkey: Valkey
) -> None:
    async with running_api(make_settings(session_timeout_ms=3_600_000)) as api:
        session_id = await api.started(maxDurationSeconds=60)
    token = claims(valkey.client.hget(keys.session(session_id), "room_token"), livekit)
    assert token["kind"] == "agent"
    assert token["sub"] == "agent"
    assert token["video"]["room"] == session_id
    assert not {"roomAdmin", "roomCreate", "roomList", "roomRecord"} & token["video"].keys()
    assert token["exp"] - time.time() > 3_600 + 300


async def test_two_sessions_have_callers_of_different_identities(api: RunningApi, livekit: LiveKitServer) -> None:
    tokens = [(await api.start()).body["token"] for _ in range(2)]
    assert len({claims(token, livekit)["sub"] for token in tokens}) == 2


async def test_the_address_for_browsers_can_be_another_than_our_own(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(livekit_public_url="wss://calls.example.com")) as api:
        session_id = (answer := await api.start()).body["sessionId"]
        back = await api.post("/api/token", {"sessionId": session_id, "userId": "Ann"})
    assert answer.body["serverUrl"] == back.body["url"] == "wss://calls.example.com"


# -- the user's defaults


async def test_what_a_user_asked_for_is_the_default_of_that_users_next_call(api: RunningApi, valkey: Valkey) -> None:
    await api.started(voiceId="Hades", openingLine="Ahoy", systemPrompt="Be brief")
    later = await api.started(openingLine="Good day")
    somebody_else = await api.started(userName="Bob")
    assert (await api.show(later))["voiceId"] == "Hades"
    assert valkey.client.hgetall(keys.session_prompt(later)) == {
        "opening_line": "Good day",
        "system_prompt": "Be brief",
    }
    assert (await api.show(somebody_else))["voiceId"] == "Ashley"


async def test_the_line_of_a_failover_may_be_empty_and_is_the_agents_own_when_nobody_asked(
    api: RunningApi, valkey: Valkey
) -> None:
    wished = await api.started(failoverLine="")
    somebody_else = await api.started(userName="Bob")
    lines = [valkey.client.hget(keys.session_prompt(name), "failover_line") for name in (wished, somebody_else)]
    assert lines == ["", None]


async def test_parallel_sessions_of_one_user_do_not_disturb_each_other(api: RunningApi, valkey: Valkey) -> None:
    one = await api.started(voiceId="Hades", systemPrompt="one")
    other = await api.started(voiceId="Alex", systemPrompt="other")
    assert [(await api.show(name))["voiceId"] for name in (one, other)] == ["Hades", "Alex"]
    prompts = [valkey.client.hget(keys.session_prompt(name), "system_prompt") for name in (one, other)]
    assert prompts == ["one", "other"]


async def test_a_user_is_known_by_the_id_rather_than_by_the_name(api: RunningApi) -> None:
    await api.started(userName="Ann", userId="u1", voiceId="Hades")
    renamed = await api.started(userName="Anna", userId="u1")
    namesake = await api.started(userName="Ann", userId="u2")
    assert [(await api.show(name))["voiceId"] for name in (renamed, namesake)] == ["Hades", "Ashley"]


# -- show


async def test_a_waiting_session_shows_null_where_nothing_is_yet(api: RunningApi) -> None:
    session_id = await api.started(userName="Ann", userId="u1")
    shown = await api.show(session_id)
    made = datetime.fromisoformat(shown["createdAt"])
    assert shown["createdAt"].endswith("Z")
    assert abs(made.timestamp() - time.time()) < 10
    assert shown == {
        "sessionId": session_id,
        "roomName": session_id,
        "status": "waiting",
        "userName": "Ann",
        "voiceId": "Ashley",
        "agentId": None,
        "agentPid": None,
        "hostId": None,
        "generation": 1,
        "createdAt": shown["createdAt"],
        "startedAt": None,
        "endedAt": None,
        "endReason": None,
        "endedBy": None,
        "durationSeconds": None,
        "durationMinutes": None,
    }


async def test_a_live_session_shows_its_agents_process(api: RunningApi) -> None:
    session_id, _, _ = await api.live("a")
    shown = await api.show(session_id)
    assert (shown["status"], shown["agentId"], shown["agentPid"], shown["hostId"]) == ("live", "a", 7, "h")
    assert (shown["durationSeconds"], shown["durationMinutes"]) == (0, 0)
    assert shown["startedAt"] >= shown["createdAt"]


async def test_a_running_session_shows_its_duration_so_far(api: RunningApi, valkey: Valkey) -> None:
    session_id, _, _ = await api.live()
    valkey.client.hincrby(keys.session(session_id), "started_at_ms", -61_000)
    shown = await api.show(session_id)
    assert (shown["durationSeconds"], shown["durationMinutes"]) == (61, 2)


# -- end


async def test_an_end_answers_with_final_figures_and_repeats_them(api: RunningApi, valkey: Valkey) -> None:
    session_id, _, _ = await api.live()
    valkey.client.hincrby(keys.session(session_id), "started_at_ms", -61_000)
    first = await api.end(session_id)
    assert first.status == 200
    assert first.seconds < 1
    assert first.body == {
        "success": True,
        "message": first.body["message"],
        "details": {
            "session_id": session_id,
            "celery_task_revoked": True,
            "process_killed": True,
            "redis_cleaned": True,
            "durationSeconds": 61,
            "durationMinutes": 2,
            "errors": [],
        },
    }
    assert (await api.end(session_id)).body == first.body
    shown = await api.show(session_id)
    assert (shown["status"], shown["endReason"], shown["endedBy"]) == ("ended", "client_end", "client")
    assert (shown["durationSeconds"], shown["durationMinutes"]) == (61, 2)
    assert shown["endedAt"] is not None


@pytest.mark.parametrize("state", ["waiting", "assigned"])
async def test_a_session_that_nobody_heard_ends_with_zero(api: RunningApi, state: str) -> None:
    if state == "assigned":
        await api.agent()
    session_id = await api.started()
    details = (await api.end(session_id)).body["details"]
    assert (details["durationSeconds"], details["durationMinutes"]) == (0, 0)
    shown = await api.show(session_id)
    assert (shown["startedAt"], shown["durationSeconds"], shown["durationMinutes"]) == (None, 0, 0)


async def test_fifty_ends_at_once_give_the_same_answer(api: RunningApi) -> None:
    session_id, _, _ = await api.live()
    answers = await asyncio.gather(*(api.end(session_id) for _ in range(50)))
    assert Counter(answer.text for answer in answers) == {answers[0].text: 50}


async def test_ending_what_never_was_is_not_found(api: RunningApi) -> None:
    answer = await api.end(UNKNOWN)
    assert (answer.status, answer.body["error"]) == (404, "session_not_found")
    assert UNKNOWN in answer.body["detail"]


@pytest.mark.parametrize("name", ["waiting", "open", "all", "ended", "{id}:prompt", "{id}:callers", "*", "x" * 3000])
async def test_a_name_that_is_no_session_id_is_not_found(api: RunningApi, name: str) -> None:
    name = name.replace("{id}", await api.started(systemPrompt="secret"))
    shown, ended = await api.get(f"/orchestrator/session/{name}"), await api.end(name[:100])
    assert (shown.status, ended.status) == (404, 404)
    assert "secret" not in shown.text


# -- list


async def walk(api: RunningApi, **query: Any) -> list[str]:
    """Follow the cursors to the end."""
    found: list[str] = []
    while True:
        page = (await api.get("/orchestrator/sessions", params=query)).body
        assert len(page["sessions"]) <= query["limit"]
        found += [row["sessionId"] for row in page["sessions"]]
        if page["nextCursor"] is None:
            return found
        query["cursor"] = page["nextCursor"]


def remember(valkey: Valkey, made_ms: list[int]) -> list[str]:
    """Write sessions that ended, as if they had been made at these times; returns their ids, newest first."""
    named = [(at_ms, f"session_{at_ms}_{number:016x}") for number, at_ms in enumerate(made_ms)]
    for at_ms, name in named:
        record = {"state": "ended", "created_at_ms": at_ms, "ended_at_ms": at_ms}
        valkey.client.hset(keys.session(name), mapping=record)
        valkey.client.expire(keys.session(name), 60)
        valkey.client.zadd(keys.SESSION_ALL, {name: at_ms})
    return [name for _, name in sorted(named, reverse=True)]


@pytest.mark.parametrize("limit", [1, 3, 7, 200])
async def test_cursors_walk_every_session_once_newest_first(api: RunningApi, valkey: Valkey, limit: int) -> None:
    newest_first = remember(valkey, [1_000, 2_000, 2_000, 2_000, 2_000, 3_000, 3_000])
    assert await walk(api, limit=limit) == newest_first
    assert await walk(api, limit=limit, status="ended") == newest_first


async def test_cursors_walk_more_sessions_of_one_moment_than_are_read_at_once(api: RunningApi, valkey: Valkey) -> None:
    newest_first = remember(valkey, [5_000] * 450)
    assert await walk(api, limit=97) == newest_first


async def test_a_list_can_be_of_one_status(api: RunningApi) -> None:
    live, _, _ = await api.live("a")
    await api.agent("b")
    assigned, waiting, ended = await api.started(), await api.started(), await api.started()
    await api.end(ended)
    for status, expected in {"live": live, "assigned": assigned, "waiting": waiting, "ended": ended}.items():
        assert await walk(api, limit=10, status=status) == [expected]
    assert await walk(api, limit=10) == [ended, waiting, assigned, live]


@pytest.mark.parametrize("query", ["cursor=nonsense", "cursor=%FF", "limit=0", "limit=201", "limit=x", "status=old"])
async def test_a_list_that_cannot_be_made_says_what_is_wrong(api: RunningApi, query: str) -> None:
    answer = await api.get(f"/orchestrator/sessions?{query}")
    assert (answer.status, answer.body["error"]) == (422, "invalid_request")
    assert query.partition("=")[0] in answer.body["detail"]


# -- come back


async def test_a_caller_comes_back_with_a_fresh_token_of_the_same_identity(
    api: RunningApi, livekit: LiveKitServer
) -> None:
    start = await api.start(userId="u1")
    back = await api.post("/api/token", {"sessionId": start.body["sessionId"], "userId": "u1"})
    assert (back.status, back.body.keys()) == (200, {"token", "url"})
    before, after = claims(start.body["token"], livekit), claims(back.body["token"], livekit)
    assert (after["sub"], after["video"]) == (before["sub"], before["video"])


async def test_a_token_is_for_the_user_of_an_open_session_only(api: RunningApi, valkey: Valkey) -> None:
    open_id, ended_id = await api.started(userId="u1"), await api.started(userId="u1")
    await api.end(ended_id)
    asked = {(open_id, "u2"): 403, (open_id, "Ann"): 403, (ended_id, "u1"): 404, (UNKNOWN, "u1"): 404}
    for (session_id, user), status in asked.items():
        answer = await api.post("/api/token", {"sessionId": session_id, "userId": user})
        assert (answer.status, "token" in answer.body) == (status, False)
    assert not valkey.client.exists(keys.session(UNKNOWN))


# -- health


async def test_an_answer_is_not_held_back(api: RunningApi) -> None:
    """Nagle's algorithm on the listening socket held each answer's body back for 40 ms."""
    assert min([(await api.get("/livez")).seconds for _ in range(10)]) < 0.03


async def test_health_names_each_part_with_its_state_and_latency(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey)
    answer = await api.get("/health")
    assert (answer.status, answer.body["status"]) == (200, "ok")
    assert answer.body["components"].keys() == {"redis", "broker", "livekit", "hosts"}
    for part in answer.body["components"].values():
        assert (part["state"], part["latencyMs"] >= 0) == ("ok", True)


async def test_many_who_ask_for_health_are_one_look(
    api: RunningApi, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = 0, views.health

    async def count(house: House) -> tuple[bool, dict[str, Any]]:
        nonlocal looks
        looks += 1
        return await look(house)

    monkeypatch.setattr(views, "health", count)
    monkeypatch.setattr(views, "SEEN_SECONDS", 60.0)
    host_is_seen(valkey)
    answers = await asyncio.gather(*(api.get("/health") for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
    assert looks == 1


async def test_health_is_503_without_a_host_and_livez_is_not(api: RunningApi) -> None:
    answer = await api.get("/health")
    assert answer.status == 503
    assert answer.body["components"]["hosts"]["state"] == "failed"
    assert answer.body["components"]["redis"]["state"] == "ok"
    assert (await api.get("/livez")).status == 200
