"""A call with three vendors, traced: what each of them took, and not a word that was said."""

from collections.abc import Iterator
from typing import Any

import pytest

from backend.agent import call as call_module
from backend.common import tracing
from backend.common.trace_settings import TraceSettings
from tests.fakes.fake_collector import FakeCollector, collecting
from tests.fakes.fake_vendors import FakeVendors
from tests.livekit_server import LiveKitServer
from tests.running_call import OPENING, NoWatchdog, a_call

# As in test_call_vendors.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch, no_variables: None) -> Iterator[FakeCollector]:
    """Trace what this process does."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        tracing.start(TraceSettings(), "agent")
        yield collector
        tracing.stop()


async def test_a_turn_tells_how_long_each_vendor_took_and_nothing_that_was_said(
    livekit: LiveKitServer, collector: FakeCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_module, "Watchdog", NoWatchdog)
    async with FakeVendors() as vendors:
        vendors.transcripts, vendors.replies = ["What about tomorrow?"], ["It will be sunny."]
        wishes: dict[str, Any] = dict.fromkeys(("assembly_api_key", "groq_api_key", "inworld_api_key"), "sesame")
        wishes |= {name: getattr(vendors, name) for name in ("assembly_url", "groq_url", "inworld_url")}
        trace = tracing.begin("agent", session_id="s")
        async with a_call(livekit, voice="vendors", trace=trace, **wishes) as call:
            caller = await call.caller_is_greeted()
            asked_at = await caller.say("Please tell me what you know about the weather of tomorrow.")
            await caller.sound(since=asked_at)
            await call.link.recorded("sunny")
    tracing.stop()
    (turn,) = [span for span in collector.spans if span.name == "turn"]
    stages = [span for span in collector.spans if span.parent_id == turn.span_id]
    assert {span.name for span in stages} == {"hear", "think", "speak", "play"}
    assert {"llm_first_ms", "tts_first_ms"} <= turn.attributes.keys()
    for said in (OPENING, "tomorrow", "sunny", "weather", "sesame"):
        assert said.encode() not in collector.received
