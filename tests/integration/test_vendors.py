"""Each vendor's service against that vendor's wire protocol: what it sends, what it gives, how it fails."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameProcessor

from backend.agent import prompt, voices
from backend.agent.voices import GoodbyeFrame, Voice, groq, shared
from tests.fakes.fake_vendors import FakeVendors, Kind, Seen, ToolCall, Vendor
from tests.running_service import briefing, facts, running_service, settings
from tests.waiting import wait_until_async

PERMANENT: list[tuple[Vendor, Kind]] = [("stt", "401"), ("tts", "401"), ("llm", "401"), ("tts", "mute")]
PASSING: list[tuple[Vendor, Kind]] = [
    ("stt", "500"),
    ("stt", "hang"),
    ("tts", "500"),
    ("tts", "hang"),
    ("llm", "500"),
    ("llm", "hang"),
    ("llm", "mute"),
]
SOUND = InputAudioRawFrame(b"\1\0" * 16_000, 16_000, 1)


@pytest.fixture
async def vendors() -> AsyncIterator[FakeVendors]:
    async with FakeVendors() as vendors:
        yield vendors


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a vendor may take: long enough for this machine, short enough for a test."""
    monkeypatch.setattr(shared, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(groq, "SILENT_SECONDS", 1.0)


def voice_of(vendors: FakeVendors, **session: object) -> Voice:
    chosen = settings(
        assembly_api_key="assembly-key",
        groq_api_key="groq-key",
        inworld_api_key="aW53b3JsZA==",
        assembly_url=vendors.assembly_url,
        groq_url=vendors.groq_url,
        inworld_url=vendors.inworld_url,
    )
    voice = voices.make(chosen, briefing(**session), facts())
    voice.heard.set()
    return voice


def asked(text: str, voice: Voice) -> LLMContextFrame:
    return LLMContextFrame(LLMContext([{"role": "user", "content": text}], tools=list(voice.tools)))


def only(seen: list[Seen], field: str) -> dict[str, object]:
    """The one message that has this field."""
    found: list[dict[str, object]] = [request.body[field] for request in seen if field in request.body]
    assert len(found) == 1
    return found[0]


async def test_assemblyai_gets_the_sound_and_gives_the_transcript(vendors: FakeVendors) -> None:
    vendors.transcripts = ["What a day."]
    async with running_service(voice_of(vendors).hear) as service:
        await service.send(SOUND, VADUserStoppedSpeakingFrame())
        assert (await service.got(TranscriptionFrame)).text == "What a day."
    connected, *told = vendors.seen("stt")
    assert connected.headers["Authorization"] == "assembly-key"
    assert "Sec-WebSocket-Extensions" not in connected.headers, "sound is not to be compressed"
    assert connected.body["encoding"] == "pcm_s16le"
    assert connected.body["format_turns"] == "true"
    assert [request.body["type"] for request in told] == ["ForceEndpoint", "Terminate"]


async def test_groq_gets_prompt_rules_and_tool_and_gives_the_answer(vendors: FakeVendors) -> None:
    vendors.replies = ["It is sunny."]
    voice = voice_of(vendors, system_prompt="You know the weather.")
    async with running_service(voice.think) as service:
        await service.send(asked("How is the weather?", voice))
        await service.got(LLMFullResponseEndFrame)
        assert "".join(frame.text for frame in service.all(LLMTextFrame)).strip() == "It is sunny."
        assert not service.all(GoodbyeFrame)
    (request,) = vendors.seen("llm")
    assert request.headers["Authorization"] == "Bearer groq-key"
    assert request.body["messages"][0] == {
        "role": "system",
        "content": prompt.system_prompt("You know the weather."),
    }
    assert request.body["model"] == "llama-3.3-70b-versatile"
    assert request.body["stream"] is True
    assert {name: request.body[name] for name in groq.PARAMETERS} == groq.PARAMETERS
    (tool,) = request.body["tools"]
    assert tool["function"]["name"] == "end_call"
    assert list(tool["function"]["parameters"]["properties"]) == ["farewell"]


@pytest.mark.parametrize(("farewell", "said"), [("See you soon!", "See you soon!"), (" ", prompt.FAREWELL)])
async def test_the_language_model_can_end_the_call_with_a_farewell(
    vendors: FakeVendors, farewell: str, said: str
) -> None:
    vendors.replies = [ToolCall("end_call", {"farewell": farewell})]
    voice = voice_of(vendors)
    async with running_service(voice.think) as service:
        await service.send(asked("Goodbye!", voice))
        await service.got(GoodbyeFrame)
        assert [frame.text for frame in service.all(TTSSpeakFrame)] == [said]
        last: list[Frame] = [frame for frame in service.all(Frame) if isinstance(frame, TTSSpeakFrame | GoodbyeFrame)]
        assert isinstance(last[-1], GoodbyeFrame)
    assert len(vendors.seen("llm")) == 1, "it is not asked what to say after a farewell"


async def test_inworld_gets_voice_and_speed_and_gives_sound_and_words(vendors: FakeVendors) -> None:
    async with running_service(voice_of(vendors, voice_id="Wendy").speak) as service:
        await service.send(TTSSpeakFrame("Good morning."), GoodbyeFrame())
        await service.got(GoodbyeFrame)
        frames = service.all(Frame)
        kinds = [type(frame) for frame in frames]
        assert sum(len(frame.audio) for frame in service.all(TTSAudioRawFrame)) > 24_000
        assert [frame.text for frame in service.all(TTSTextFrame)] == ["Good", "morning."]
        assert kinds.index(TTSStoppedFrame) < kinds.index(GoodbyeFrame), "goodbye is when it was spoken"
    assert vendors.seen("tts")[0].headers["Authorization"] == "Basic aW53b3JsZA=="
    assert "Sec-WebSocket-Extensions" not in vendors.seen("tts")[0].headers
    created = only(vendors.seen("tts"), "create")
    assert (created["voiceId"], created["modelId"], created["temperature"]) == ("Wendy", "inworld-tts-2", 1.1)
    assert created["audioConfig"] == {"audioEncoding": "PCM", "sampleRateHertz": 24_000, "speakingRate": 1.2}


async def test_inworld_is_asked_at_once_and_heard_when_someone_listens(vendors: FakeVendors) -> None:
    voice = voice_of(vendors)
    voice.heard.clear()
    async with running_service(voice.speak) as service:
        await service.send(TTSSpeakFrame("Good morning."))
        await wait_until_async(
            lambda: any("send_text" in request.body for request in vendors.seen("tts")), what="the text is sent"
        )
        assert not service.all(TTSAudioRawFrame)
        voice.heard.set()
        await service.got(TTSAudioRawFrame)


def service_of(voice: Voice, vendor: Vendor) -> FrameProcessor:
    return {"stt": voice.hear, "llm": voice.think, "tts": voice.speak}[vendor]


def work_for(voice: Voice, vendor: Vendor) -> list[Frame]:
    if vendor == "stt":
        return [SOUND, VADUserStoppedSpeakingFrame()]
    return [asked("Hello?", voice)] if vendor == "llm" else [TTSSpeakFrame("Good morning.")]


@pytest.mark.parametrize(("vendor", "kind"), PERMANENT + PASSING)
async def test_a_vendor_that_fails_is_reported_in_time(vendors: FakeVendors, vendor: Vendor, kind: Kind) -> None:
    vendors.fault(vendor, kind)
    voice = voice_of(vendors)
    service = service_of(voice, vendor)
    async with running_service(service) as running:
        await running.send(*work_for(voice, vendor))
        error = await running.failed(within=6.0)
        assert error.processor is service
        if (vendor, kind) in PERMANENT:
            await wait_until_async(lambda: not service.is_usable, what="it is written off")
        else:
            assert service.is_usable, "it may recover: whether the call waits for it is the call's business"
        assert not any(key in error.error for key in ("assembly-key", "groq-key", "aW53b3JsZA=="))


@pytest.mark.parametrize("vendor", ["stt", "tts"])
async def test_a_vendor_that_cut_the_line_is_connected_again(vendors: FakeVendors, vendor: Vendor) -> None:
    voice = voice_of(vendors)
    service = service_of(voice, vendor)
    kind: type[Frame] = TranscriptionFrame if vendor == "stt" else TTSAudioRawFrame
    async with running_service(service) as running:
        await wait_until_async(lambda: vendors.seen(vendor), what="it is connected")
        vendors.drop("stt" if vendor == "stt" else "tts")
        await wait_until_async(
            lambda: sum(bool(request.headers) for request in vendors.seen(vendor)) == 2, what="it is connected again"
        )

        async def works() -> bool:
            await running.send(*work_for(voice, vendor))
            await asyncio.sleep(0.5)  # what was sent while it was still connecting is lost, as it is in a call
            return bool(running.all(kind))

        await wait_until_async(works, timeout=15, what=f"a {kind.__name__} comes out")
