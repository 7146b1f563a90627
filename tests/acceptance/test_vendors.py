"""The same call with the vendors' wire protocols, spoken by emulators on this machine."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.house import House
from tests.fakes.fake_caller import FakeCaller
from tests.fakes.fake_vendors import FakeVendors
from tests.livekit_server import find_binary

KEYS = {
    "ASSEMBLY_API_KEY": "assembly-secret-1",
    "GROQ_API_KEY": "groq-secret-2",
    "INWORLD_API_KEY": "aW53b3JsZC1zZWNyZXQ=",
}


@pytest.fixture
async def vendors() -> AsyncIterator[FakeVendors]:
    """Give the three vendors, on ports of their own."""
    async with FakeVendors() as vendors:
        yield vendors


@pytest.fixture
async def house(vendors: FakeVendors) -> AsyncIterator[House]:
    """Give the whole product, with keys for the vendors."""
    find_binary()
    addresses = {"ASSEMBLY_URL": vendors.assembly_url, "GROQ_URL": vendors.groq_url, "INWORLD_URL": vendors.inworld_url}
    house = House(**KEYS, **addresses)
    try:
        # The vendors answer in this very loop.
        await asyncio.to_thread(house.start)
        yield house
    finally:
        await asyncio.to_thread(house.discard)


async def test_a_call_with_vendors_is_greeted_answered_and_charged(house: House, vendors: FakeVendors) -> None:
    vendors.transcripts = ["What is the highest building in the world?"]
    vendors.replies = ["The highest building in the world is in Dubai."]
    wish = {"userName": "ada", "openingLine": "Welcome to the tower guide.", "systemPrompt": "You know towers."}
    started = await asyncio.to_thread(house.post, "/orchestrator/session/start", wish)
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        heard_at = await caller.sound(timeout=20)
        await caller.silence()
        await caller.say("what is the highest building in the world")
        await caller.shown("Dubai", speaker="agent", timeout=20)
        await caller.silence()
        ended_at = time.monotonic()
        end = await asyncio.to_thread(house.post, "/orchestrator/session/end", {"sessionId": started["sessionId"]})
        await asyncio.wait_for(caller.is_out.wait(), timeout=20)
    assert abs(end["details"]["durationSeconds"] - (ended_at - heard_at)) <= 1
    written = await asyncio.to_thread(house.everything_written)
    for secret in [*KEYS.values(), "You know towers", "Dubai", "tower guide"]:
        assert secret not in written


async def test_a_vendor_that_refuses_ends_the_call_as_the_platforms_fault(house: House, vendors: FakeVendors) -> None:
    vendors.fault("stt", "401")
    started = await asyncio.to_thread(house.post, "/orchestrator/session/start", {"userName": "ada"})
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        await asyncio.wait_for(caller.is_out.wait(), timeout=30)
    shown = await asyncio.to_thread(house.get, f"/orchestrator/session/{started['sessionId']}")
    assert (shown["endReason"], shown["endedBy"]) == ("vendor_failed", "platform")
