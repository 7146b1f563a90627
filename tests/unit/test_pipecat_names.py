"""Names of Pipecat and LiveKit that are not public, but used all the same: an upgrade fails here, not in a call."""

import inspect
from importlib.metadata import version

import pytest
from livekit import rtc
from livekit.rtc._proto.track_pb2 import AudioTrackFeature
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADAnalyzer
from pipecat.frames.frames import TTSSpeakFrame
from pipecat.services.tts_service import TTSService
from pipecat.services.websocket_service import WebsocketService
from pipecat.transports.livekit.transport import (
    LiveKitCallbacks,
    LiveKitParams,
    LiveKitTransport,
    LiveKitTransportClient,
)


@pytest.fixture
async def transport() -> LiveKitTransport:
    return LiveKitTransport("ws://unused", "unused", "room", LiveKitParams(audio_out_enabled=True))


def test_the_versions_are_those_that_were_read() -> None:
    assert version("pipecat-ai") == "1.14.0"
    assert version("livekit") == "1.2.0"


async def test_the_transport_keeps_its_client_with_all_that_a_second_one_needs(transport: LiveKitTransport) -> None:
    client = transport._client
    assert isinstance(client, LiveKitTransportClient)
    assert client._params is transport._params
    assert isinstance(client._callbacks, LiveKitCallbacks)
    assert client._transport_name
    wanted = ["self", "url", "token", "room_name", "params", "callbacks", "transport_name"]
    assert list(inspect.signature(LiveKitTransportClient.__init__).parameters) == wanted


async def test_input_and_output_take_the_client_from_the_transport_when_they_are_asked_for(
    transport: LiveKitTransport,
) -> None:
    replaced = LiveKitTransportClient("", "", "room", LiveKitParams(), transport._client._callbacks, "name")
    transport._client = replaced
    assert transport.input()._client is replaced
    assert transport.output()._client is replaced


async def test_the_client_uses_its_room_by_the_property(transport: LiveKitTransport) -> None:
    assert isinstance(LiveKitTransportClient.room, property)
    source = inspect.getsource(LiveKitTransportClient)
    uses = source.count("self._room.") + source.count("self._room)")
    assert uses == 0, "the client goes past its property"
    assert transport._client._audio_streams == {}
    assert transport._client._audio_source is None


def test_connect_is_wrapped_in_retries_and_the_bare_one_can_be_had() -> None:
    bare = LiveKitTransportClient.connect.__wrapped__
    assert inspect.iscoroutinefunction(bare)
    assert "_connected" in inspect.getsource(bare)


def test_subscribed_tracks_go_through_one_function_of_three_arguments() -> None:
    handler = LiveKitTransportClient._on_track_subscribed_wrapper
    assert list(inspect.signature(handler).parameters) == ["self", "track", "publication", "participant"]
    assert '"track_subscribed")(self._on_track_subscribed_wrapper)' in inspect.getsource(LiveKitTransportClient.setup)


async def test_a_microphones_sound_goes_through_one_function_into_one_queue(transport: LiveKitTransport) -> None:
    handler = LiveKitTransportClient._process_audio_stream
    assert list(inspect.signature(handler).parameters) == ["self", "audio_stream", "participant_id"]
    assert "await self._audio_queue.put((event, participant_id))" in inspect.getsource(handler)
    assert transport._client._audio_queue.empty()
    assert AudioTrackFeature.TF_PRECONNECT_BUFFER in AudioTrackFeature.values()


def test_all_sound_goes_out_through_publish_audio() -> None:
    assert list(inspect.signature(LiveKitTransportClient.publish_audio).parameters) == ["self", "audio_frame"]
    assert hasattr(rtc.AudioSource, "clear_queue")


def test_a_voice_starts_its_word_times_at_the_first_sound() -> None:
    assert inspect.iscoroutinefunction(TTSService.start_word_timestamps)


def test_websockets_are_opened_by_one_function_with_free_options() -> None:
    parameters = inspect.signature(WebsocketService._websocket_connect).parameters
    assert list(parameters) == ["self", "uri", "kwargs"]


def test_speech_that_may_not_be_interrupted_is_marked_after_it_was_made() -> None:
    assert TTSSpeakFrame("").interruptible
    with pytest.raises(TypeError):
        TTSSpeakFrame("", interruptible=False)  # type: ignore[call-arg]  # that is the point


def test_a_microphone_is_heard_by_one_function_that_keeps_its_stream_and_task() -> None:
    source = inspect.getsource(LiveKitTransportClient._async_on_track_subscribed)
    for name in ("_close_audio_stream(", "_process_audio_stream(", "_audio_streams[", "on_audio_track_subscribed("):
        assert name in source
    assert "_task_manager" in inspect.getsource(LiveKitTransportClient.setup)


def test_the_voice_detector_asks_for_the_volume_after_the_confidence() -> None:
    source = inspect.getsource(VADAnalyzer._run_analyzer)
    assert source.index("self.voice_confidence(") < source.index("self._get_smoothed_volume(")
    assert "self._run_analyzer" in inspect.getsource(VADAnalyzer.analyze_audio)
    assert "volume >= self._params.min_volume" in source
    assert {"_model", "_windows_since_reset"} <= set(vars(SileroVADAnalyzer()))
