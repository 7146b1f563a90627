"""Who hears, thinks and speaks: the providers by name, their settings, and what of Pipecat they hold on to."""

import inspect
import subprocess
import sys
import types

import pytest
from pipecat.services.assemblyai.stt import AssemblyAISTTService
from pipecat.services.inworld.tts import InworldTTSService
from pipecat.services.openai.base_llm import BaseOpenAILLMService
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.services.tts_service import TTSService
from pipecat.services.websocket_service import WebsocketService

from backend.agent import prompt, voices
from backend.agent.voices import assemblyai, demo, demo_process, groq, inworld
from tests.running_service import briefing, facts, settings

KEYS = {"assembly_api_key": "a", "groq_api_key": "g", "inworld_api_key": "i"}


async def test_without_keys_the_demo_voice_speaks() -> None:
    voice = voices.make(settings(), briefing(), facts())
    assert isinstance(voice.hear, demo.DemoEars)
    assert isinstance(voice.speak, demo.DemoVoice)
    assert voice.first_words
    assert voice.tools == ()
    assert not voice.heard.is_set()


async def test_with_keys_the_vendors_speak_as_configured() -> None:
    voice = voices.make(settings(**KEYS), briefing(voice_id="Craig", system_prompt="Be brief."), facts())
    assert isinstance(voice.hear, assemblyai.AssemblyAiEars)
    assert isinstance(voice.think, groq.GroqModel)
    assert isinstance(voice.speak, inworld.InworldVoice)
    spoken = vars(voice.speak.settings)
    assert (spoken["voice"], spoken["speaking_rate"], spoken["temperature"]) == ("Craig", 1.2, 1.1)
    thought = vars(voice.think.settings)
    assert thought["model"] == "llama-3.3-70b-versatile"
    assert thought["system_instruction"] == prompt.system_prompt("Be brief.")
    assert voice.think._client.max_retries == 0
    assert voice.first_words == prompt.opening_line("")
    assert voice.heard is voice.speak.heard
    assert [tool.__name__ for tool in voice.tools] == ["end_call"]


@pytest.mark.parametrize(("voice_id", "speed"), [("Ashley", 1.0), ("Wendy", 1.2), ("Somebody", 1.0)])
async def test_each_voice_has_its_speed(voice_id: str, speed: float) -> None:
    speak = inworld.text_to_speech(settings(**KEYS), briefing(voice_id=voice_id))
    assert vars(speak.settings)["speaking_rate"] == speed


async def test_a_provider_can_be_mixed_with_others() -> None:
    voice = voices.make(settings(**KEYS, text_to_speech="demo"), briefing(), facts())
    assert isinstance(voice.speak, demo.DemoVoice)
    assert isinstance(voice.think, groq.GroqModel)


async def test_a_provider_from_elsewhere_is_found_by_its_full_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("elsewhere.ears")
    module.__dict__["speech_to_text"] = lambda *_: demo.DemoEars()
    monkeypatch.setitem(sys.modules, "elsewhere", types.ModuleType("elsewhere"))
    monkeypatch.setitem(sys.modules, "elsewhere.ears", module)
    voice = voices.make(settings(**KEYS, speech_to_text="elsewhere.ears"), briefing(), facts())
    assert isinstance(voice.hear, demo.DemoEars)


@pytest.mark.parametrize("name", ["whisper", "groq", "no.such.module", "backend.agent.prompt"])
def test_a_provider_that_is_not_there_is_an_error_before_any_call(name: str) -> None:
    with pytest.raises(voices.ProviderError, match=r"SPEECH_TO_TEXT got .* assemblyai, demo"):
        voices.preload(settings(**KEYS, speech_to_text=name))


async def test_a_voice_that_is_not_held_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inworld, "text_to_speech", lambda *_: InworldTTSService(api_key="i"))
    with pytest.raises(voices.ProviderError, match="Held"):
        voices.make(settings(**KEYS), briefing(), facts())


def test_the_demo_voice_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo_process.LIBRARIES, "hear", "no_such_library")
    with pytest.raises(voices.ProviderError, match=r"no_such_library.*extra demo"):
        voices.preload(settings())


@pytest.mark.parametrize("chosen", [{}, KEYS])
def test_preloading_starts_no_event_loop_thread_or_process(chosen: dict[str, str]) -> None:
    # In a process of its own: the tests have loops and threads.
    program = (
        "import threading, asyncio, sys; from livekit.rtc import _ffi_client as ffi;"
        "from backend.agent import voices; from tests.running_service import settings;"
        "before = set(threading.enumerate());"
        f"voices.preload(settings(**{chosen!r}));"
        "assert set(threading.enumerate()) == before, threading.enumerate();"
        "assert asyncio.get_event_loop_policy()._local._loop is None;"
        "assert ffi.FfiClient._instance is None"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=20)


def test_no_key_is_in_what_an_object_shows_of_itself() -> None:
    made = settings(**{name: f"secret-{key}" for name, key in KEYS.items()})
    assert "secret" not in repr(made)


# What is used of Pipecat and not promised by it: an upgrade must fail here, not in a call.


def test_a_voice_is_held_where_its_first_sound_is_played() -> None:
    assert inspect.iscoroutinefunction(TTSService.start_word_timestamps)
    played = inspect.getsource(TTSService._push_audio_context_item)
    assert "await self.start_word_timestamps()" in played
    assert inworld.InworldVoice.__mro__.index(voices.Held) < inworld.InworldVoice.__mro__.index(InworldTTSService)


def test_sockets_are_opened_by_the_one_function_that_is_replaced() -> None:
    assert list(inspect.signature(WebsocketService._websocket_connect).parameters) == ["self", "uri", "kwargs"]
    for service in (AssemblyAISTTService, InworldTTSService):
        assert "await self._websocket_connect(" in inspect.getsource(service._connect_websocket)


def test_the_language_model_takes_its_client_from_the_function_that_is_replaced() -> None:
    made = inspect.getsource(BaseOpenAILLMService.__init__)
    assert "self._client = self.create_client(\n            api_key=api_key,\n            base_url=base_url," in made


def test_segments_come_with_the_speaker_and_are_transcribed_off_the_loop_of_frames() -> None:
    source = inspect.getsource(SegmentedSTTService)
    assert "await self.process_generator(self.run_stt(audio))" in source
    assert "self._user_id = frame.user_id" in source
    assert isinstance(SegmentedSTTService.wants_wav_segments, property)
