"""A call with three vendors, traced: what each of them took, and not a word that was said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.agent.briefing import Briefing, Link
from backend.agent.standby import Standby
from backend.common import tracing
from backend.common.contract import Agent, EndReason
from backend.common.limits import Limits
from backend.common.settings import LauncherSettings
from backend.common.trace_settings import TraceSettings
from tests.fakes.fake_collector import FakeCollector, collecting
from tests.fakes.fake_vendors import FakeVendors
from tests.integration.desk import Desk
from tests.livekit_server import LiveKitServer
from tests.running_call import OPENING, a_call
from tests.valkey_server import Valkey

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


async def test_a_session_that_stood_in_the_line_shows_how_long(
    valkey: Valkey, collector: FakeCollector, tmp_path: Path
) -> None:
    async def leave(_: Briefing, __: Link) -> EndReason:
        return EndReason.GOODBYE

    start = tracing.begin("start")
    start.stage("admission")
    Desk(valkey, Limits.waiting_at_most(30)).session(record=start.carried())
    settings = LauncherSettings(
        redis_url=valkey.url, host_id="h", run_dir=tmp_path, log_dir=tmp_path / "logs", livekit_url="ws://nowhere"
    )
    life = Standby(Agent(id="me", nonce="nonce", host_id="h"), settings)
    assert await life.live(leave) == 0
    await life.close()
    start.end()
    tracing.stop()
    spans = {span.name: span for span in collector.spans}
    admission, wait, agent = spans["admission"], spans["wait"], spans["agent"]
    assert (admission.ended_at_ns, wait.ended_at_ns) == (wait.began_at_ns, agent.began_at_ns)
    assert {span.parent_id for span in (admission, wait, agent)} == {spans["start"].span_id}
    assert agent.attributes == {"session_id": "s", "agent_id": "me", "host_id": "h", "generation": 1}
    assert spans["call"].attributes == {"end_reason": "goodbye", "ended_by": "agent"}
