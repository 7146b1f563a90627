"""A call by a REST client and a real rtc client, with the voice that needs no keys."""

import asyncio
import time
from datetime import datetime
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from tests.acceptance.house import House
from tests.fakes.fake_caller import FakeCaller
from tests.waiting import wait_until, wait_until_async

PROMPT = "The secret word of this prompt is Rumpelstilzchen."
OPENING = "Good morning, and welcome to the acceptance test."


async def test_a_caller_is_greeted_asks_is_answered_and_charged_to_the_second(house: House) -> None:
    wish = {"userName": "ada", "openingLine": OPENING, "systemPrompt": PROMPT, "voiceId": "Olivia"}
    started = house.post("/orchestrator/session/start", wish)
    assert started["status"] == "assigned"
    assert started["roomName"] == started["sessionId"]
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        heard_at = await caller.sound(timeout=20)
        await caller.shown("welcome to the acceptance test", speaker="agent")
        await caller.silence()
        await caller.say("how long have we been talking")
        await caller.shown("second", speaker="agent", timeout=20)
        await caller.silence()
        ended_at = time.monotonic()
        end = await asyncio.to_thread(house.post, "/api/session/end", {"sessionId": started["sessionId"]})
        assert time.monotonic() - ended_at < 1
        await asyncio.wait_for(caller.is_out.wait(), timeout=20)
    details = end["details"]
    assert abs(details["durationSeconds"] - (ended_at - heard_at)) <= 1
    assert details["durationMinutes"] == 1
    assert details["errors"] == []
    shown = house.get(f"/orchestrator/session/{started['sessionId']}")
    assert (shown["status"], shown["endReason"], shown["endedBy"]) == ("ended", "client_end", "client")
    assert shown["durationSeconds"] == details["durationSeconds"]
    lasted = datetime.fromisoformat(shown["endedAt"]) - datetime.fromisoformat(shown["startedAt"])
    assert int(lasted.total_seconds()) == details["durationSeconds"]
    again = house.post("/orchestrator/session/end", {"sessionId": started["sessionId"]})
    assert again["details"] == details


async def test_typed_words_reach_the_agent_and_goodbye_ends_the_call(house: House) -> None:
    started = house.post("/orchestrator/session/start", {"userName": "grace"})
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"], with_microphone=False)
        await caller.utterance()
        await caller.type("tell me a joke")
        await caller.utterance(since=time.monotonic())
        await caller.type("goodbye")
        await asyncio.wait_for(caller.is_out.wait(), timeout=30)
        assert "speaking" in caller.states
    shown = house.get(f"/orchestrator/session/{started['sessionId']}")
    assert (shown["endReason"], shown["endedBy"]) == ("goodbye", "agent")


async def test_a_caller_whose_agent_is_killed_gets_another_one(house: House) -> None:
    started = house.post("/orchestrator/session/start", {"userName": "alan"})
    path = f"/orchestrator/session/{started['sessionId']}"
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        await caller.utterance()
        first = house.get(path)
        killed_at = time.monotonic()
        house.kill(first["agentPid"])
        await caller.sound(since=killed_at + 0.3, timeout=20)
        second = house.get(path)
        assert second["generation"] == 2
        assert second["agentPid"] != first["agentPid"]
        assert second["startedAt"] == first["startedAt"]
        assert not caller.is_out.is_set()
        house.post("/orchestrator/session/end", {"sessionId": started["sessionId"]})


async def test_a_caller_may_come_back_with_a_fresh_token_and_nobody_else(house: House) -> None:
    started = house.post("/orchestrator/session/start", {"userName": "mary"})
    session_id = started["sessionId"]
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        await caller.utterance()
    fresh = house.post("/api/token", {"sessionId": session_id, "userId": "mary"})
    assert house.refusal("/api/token", {"sessionId": session_id, "userId": "eve"}) == 403
    async with FakeCaller() as caller:
        await caller.join(fresh["url"], fresh["token"])
        await caller.type("how long have we been talking")
        await caller.sound(timeout=20)
        house.post("/orchestrator/session/end", {"sessionId": session_id})
        await asyncio.wait_for(caller.is_out.wait(), timeout=20)
    assert house.refusal("/api/token", {"sessionId": session_id, "userId": "mary"}) == 404


async def test_a_start_that_is_repeated_gives_the_same_session(house: House) -> None:
    async with httpx.AsyncClient(base_url=house.url, headers={"Idempotency-Key": "once"}, timeout=10) as client:
        requests = [client.post("/orchestrator/session/start", json={"userName": "twice"}) for _ in range(5)]
        answers = [answer.json() for answer in await asyncio.gather(*requests)]
        other = await client.post("/orchestrator/session/start", json={"userName": "other"})
    assert len({answer["sessionId"] for answer in answers}) == 1
    assert other.status_code == 409
    house.post("/orchestrator/session/end", {"sessionId": answers[0]["sessionId"]})


def test_every_program_runs_and_is_well(house: House) -> None:
    status = house.control("status")
    running = {line.split()[0] for line in status.splitlines() if "RUNNING" in line}
    assert running == {"api", "worker", "beat", "launcher", "redis", "livekit"}
    assert house.get("/health")["status"] == "ok"


def test_an_ended_session_leaves_no_agent_and_no_open_record(house: House) -> None:
    def is_calm() -> bool:
        stats = house.get("/stats")
        return house.is_warm() and not any(stats["agents"][state] for state in ("busy", "stopping"))

    wait_until(is_calm, timeout=20, what="only warm agents are left")
    sessions = house.get("/stats")["sessions"]
    assert (sessions["waiting"], sessions["assigned"], sessions["live"]) == (0, 0, 0)


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/page/livekit-client.umd.js", "/livez"])
def test_the_page_and_the_documentation_come_from_our_own_files(house: House, path: str) -> None:
    answer = httpx.get(f"{house.url}{path}")
    assert answer.status_code == 200
    assert "https://cdn" not in answer.text[:2000]


async def test_nothing_that_was_written_holds_a_secret_a_prompt_or_a_transcript(house: House) -> None:
    started = house.post(
        "/orchestrator/session/start", {"userName": "spy", "systemPrompt": PROMPT, "openingLine": OPENING}
    )
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"], with_microphone=False)
        await caller.utterance()
        await caller.type("my password is swordfish")
        await caller.utterance(since=time.monotonic())
        house.post("/orchestrator/session/end", {"sessionId": started["sessionId"]})
        await asyncio.wait_for(caller.is_out.wait(), timeout=20)
    await wait_until_async(lambda: "session settled" in house.everything_written(), timeout=20)
    written = house.everything_written()
    assert started["sessionId"] in written
    for secret in [
        *house.secrets(),
        "Rumpelstilzchen",
        "welcome to the acceptance test",
        "swordfish",
        started["token"],
    ]:
        assert secret not in written


def test_what_the_house_keeps_is_its_owners_only_and_its_agents_hold_no_secret_of_livekit(house: House) -> None:
    kept = [path for path in house.run_dir.rglob("*") if not path.is_symlink()]
    assert {"launcher.sock", "launcher.lock", "supervisor.sock", "kept.json"} <= {path.name for path in kept}
    assert [path for path in kept if path.exists() and path.stat().st_mode & 0o077 and not path.is_dir()] == []
    assert house.run_dir.stat().st_mode & 0o077 == 0
    launcher = psutil.Process(int(house.control("pid", "launcher")))
    agents = launcher.children()
    assert agents
    secret, _ = house.secrets()
    for process in [launcher, *agents]:
        assert secret not in str(process.environ())
    assert "NoNewPrivs:\t1" in Path(f"/proc/{agents[0].pid}/status").read_text()
