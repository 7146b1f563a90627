"""AssemblyAI: speech to text over its streaming socket, version 3."""

from typing import Any

from pipecat.frames.frames import Frame, VADUserStoppedSpeakingFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.assemblyai.stt import AssemblyAISTTService

from backend.agent.briefing import Briefing
from backend.agent.voices.shared import Socket, reveal
from backend.common.settings import LauncherSettings

ENCODING = "pcm_s16le"
"""The sample rate is the pipeline's, 16 kHz."""

PARAMETERS: dict[str, Any] = {
    "model": "universal-3-6-pro",
    # Silence inside a turn after which a final transcript comes; whose turn it is, the pipeline decides.
    "min_turn_silence": 100,
    "format_turns": True,
    "formatted_finals": True,
    "continuous_partials": True,
    # None: the vendor's own default.
    "vad_threshold": None,
    "end_of_turn_confidence_threshold": None,
    "language_detection": None,
    "keyterms_prompt": None,
    "prompt": None,
    "speaker_labels": None,
}
"""Names as in AssemblyAISTTService.Settings."""


class AssemblyAiEars(Socket, AssemblyAISTTService):
    """Pipecat's service over our socket."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Let the end of the caller's first words wait for the connection, as the sound before it does."""
        if isinstance(frame, VADUserStoppedSpeakingFrame):
            await self.connected()
        await super().process_frame(frame, direction)


def speech_to_text(settings: LauncherSettings, _: Briefing) -> FrameProcessor:
    """Make the ears of one call."""
    return AssemblyAiEars(
        api_key=reveal(settings.assembly_api_key),
        api_endpoint_base_url=settings.assembly_url,
        encoding=ENCODING,
        settings=AssemblyAISTTService.Settings(**PARAMETERS),
    )
