"""A call leaves one trace at the collector: what it is made of, how long each stage took, and nothing secret."""

import asyncio
import time
from collections.abc import Iterator
from itertools import pairwise

import httpx2 as httpx
import pytest

from tests.acceptance.house import House
from tests.fakes.fake_caller import FakeCaller
from tests.fakes.fake_collector import FakeCollector, Span, collecting
from tests.livekit_server import find_binary
from tests.waiting import wait_until, wait_until_async

PROMPT = "The secret word of this prompt is Rumpelstilzchen."
OPENING = "Good morning, and welcome to the traced call."
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ANSWER = ["admission", "claim", "create_room", "token"]
START = {"admission", "bell", "briefed", "join_room", "confirm", "build", "publish", "connect", "caller", "first_sound"}
TURN = ["hear", "think", "speak", "play"]


@pytest.fixture(scope="module")
def collector() -> Iterator[FakeCollector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def house(collector: FakeCollector) -> Iterator[House]:
    find_binary()
    house = House(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_HEADERS="x-key=sesame")
    try:
        house.start()
        yield house
    finally:
        house.discard()


def named(spans: list[Span], name: str) -> Span:
    """The one span of this name."""
    (span,) = [span for span in spans if span.name == name]
    return span


def children(spans: list[Span], parent: Span) -> list[Span]:
    """Its stages."""
    return [span for span in spans if span.parent_id == parent.span_id and span.attributes.get("stage")]


def names(collector: FakeCollector, session_id: str) -> set[str]:
    return {span.name for span in collector.of_session(session_id)}


def settled(collector: FakeCollector, session_id: str) -> list[Span]:
    """The whole trace, once the last of it came."""
    wait_until(lambda: {"settle", "call"} <= names(collector, session_id), timeout=20)
    return collector.of_session(session_id)


async def test_a_call_is_one_trace_whose_stages_sum_to_the_latency(house: House, collector: FakeCollector) -> None:
    wish = {"userName": "Ada Lovelace", "openingLine": OPENING, "systemPrompt": PROMPT}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    wait_until(house.is_warm, timeout=20)
    started = httpx.post(f"{house.url}/orchestrator/session/start", json=wish, headers=headers).json()
    session_id = started["sessionId"]
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        await caller.shown("welcome to the traced call", speaker="agent", timeout=20)
        await caller.silence()
        await caller.say("how long have we been talking")
        await caller.shown("second", speaker="agent", timeout=20)
        await caller.silence()
        await asyncio.to_thread(house.post, "/api/session/end", {"sessionId": session_id})
        await asyncio.wait_for(caller.is_out.wait(), timeout=20)
    spans = await asyncio.to_thread(settled, collector, session_id)

    assert {span.trace_id for span in spans} == {TRACE}
    start, agent, settle = (named(spans, name) for name in ("start", "agent", "settle"))
    assert start.parent_id == PARENT
    assert (agent.parent_id, settle.parent_id) == (start.span_id, start.span_id)
    assert {span.name: span.service for span in (start, agent, settle)} == {
        "start": "greenroom-api",
        "agent": "greenroom-agent",
        "settle": "greenroom-worker",
    }
    shown = house.get(f"/orchestrator/session/{session_id}")
    assert (agent.attributes["agent_id"], agent.attributes["host_id"]) == (shown["agentId"], shown["hostId"])
    assert agent.attributes["generation"] == 1
    assert named(spans, "call").attributes == {"end_reason": "client_end", "ended_by": "client"}
    assert named(spans, "end").attributes == {"reason": "client_end", "ended_by": "client"}

    answer = [span for span in children(spans, start) if span.name in ANSWER]
    assert [span.name for span in answer] == ANSWER
    assert_contiguous(answer)
    assert sum(span.ns for span in answer) <= start.ns < sum(span.ns for span in answer) + 20_000_000

    way = [named(answer, "admission"), *(span for span in spans if span.name == "bell"), *children(spans, agent)]
    assert {span.name for span in way} == START
    assert_contiguous(way)
    first_sound = named(way, "first_sound")
    assert sum(span.ns for span in way) == first_sound.ended_at_ns - start.began_at_ns
    assert named(spans, "opening_line").ns > 0

    (turn,) = [span for span in spans if span.name == "turn" and not span.attributes["is_interrupted"]]
    assert turn.parent_id == agent.span_id
    stages = children(spans, turn)
    assert [span.name for span in stages] == TURN
    assert_contiguous(stages)

    said = ("Rumpelstilzchen", "welcome", "talking", "second", "Ada", "Lovelace")
    for secret in (*house.secrets(), started["token"], *said):
        assert secret.encode() not in collector.received, secret
    assert session_id.encode() in collector.received
    assert {headers.get("x-key") for headers in collector.headers} == {"sesame"}


def assert_contiguous(stages: list[Span]) -> None:
    for before, after in pairwise(stages):
        assert before.ended_at_ns == after.began_at_ns, (before.name, after.name)


async def test_a_successor_is_a_second_agent_in_the_same_trace(house: House, collector: FakeCollector) -> None:
    started = house.post("/orchestrator/session/start", {"userName": "alan"})
    session_id = started["sessionId"]
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        await caller.utterance()
        pid = house.get(f"/orchestrator/session/{session_id}")["agentPid"]
        # A killed agent sends nothing more: what it has traced so far is sent within a second.
        await wait_until_async(lambda: "agent" in names(collector, session_id), timeout=20)
        killed_at = time.monotonic()
        house.kill(pid)
        await caller.sound(since=killed_at + 0.3, timeout=20)
        await asyncio.to_thread(house.post, "/api/session/end", {"sessionId": session_id})
        await asyncio.wait_for(caller.is_out.wait(), timeout=20)
    spans = await asyncio.to_thread(settled, collector, session_id)
    assert len({span.trace_id for span in spans}) == 1
    first, second = (span for span in spans if span.name == "agent")
    assert (first.attributes["generation"], second.attributes["generation"]) == (1, 2)
    assert first.parent_id == second.parent_id == named(spans, "start").span_id
    assert "first_sound" in {span.name for span in children(spans, second)}
