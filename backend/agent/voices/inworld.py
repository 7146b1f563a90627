"""Inworld: text to speech over its two-way socket."""

from collections.abc import Mapping
from types import MappingProxyType

from pipecat.services.inworld.tts import InworldTTSService

from backend.agent.briefing import Briefing
from backend.agent.voices.remembering import Remembering
from backend.agent.voices.shared import Held, Socket, reveal
from backend.common.settings import LauncherSettings

MODEL = "inworld-tts-2"
TEMPERATURE = 1.1
"""How expressive the voice is, 0 to 2."""
DEFAULT_SPEED = 1.0
SPEEDS: Mapping[str, float] = MappingProxyType(
    {"Ashley": 1.0, "Craig": 1.2, "Edward": 1.0, "Olivia": 1.0, "Priya": 1.0, "Wendy": 1.2}
)
"""Some voices are slow by nature."""
MUTE_AFTER = 1
"""So many utterances without any sound, and the voice is written off; Pipecat would try three."""


class InworldSocket(Socket, InworldTTSService):
    """Pipecat's service over our socket."""

    async def on_turn_context_created(self, context_id: str) -> None:
        """Announce the utterance, once there is somebody to announce it to."""
        await self.connected()
        await super().on_turn_context_created(context_id)


class InworldVoice(Remembering, InworldSocket):
    """The same, held until it can be heard; it knows its opening line, if it may."""


def text_to_speech(settings: LauncherSettings, briefing: Briefing) -> Held:
    """Make the voice of one call."""
    return InworldVoice(
        sounds_by={"url": settings.inworld_url},
        secret=reveal(settings.inworld_api_key),
        api_key=reveal(settings.inworld_api_key),
        url=settings.inworld_url,
        max_consecutive_zero_audio_contexts=MUTE_AFTER,
        settings=InworldTTSService.Settings(
            model=MODEL,
            voice=briefing.voice_id,
            temperature=TEMPERATURE,
            speaking_rate=SPEEDS.get(briefing.voice_id, DEFAULT_SPEED),
        ),
    )
