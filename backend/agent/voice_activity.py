"""Tells speech from silence, asking the model only about sound that is loud enough to count."""

from collections import deque

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADState

CATCH_UP_WINDOWS = 20
"""What the model hears of the time before it was asked, 0.6 s: more does not change its answers."""


class VoiceActivity(SileroVADAnalyzer):
    """Pipecat's analyzer with the same answers for less.

    Speech has to be loud and to sound like speech, so where it is not loud the model need not be asked.
    Once it gets loud, the model first catches up on what came before: it judges a window by those
    before it. Where that was too much, it starts afresh, as Pipecat lets it every 2 s while nobody speaks.

    The model runs on the loop: 0.2 ms, less than a thread to run it on would cost.
    """

    def __init__(self) -> None:
        super().__init__()
        self._missed: deque[bytes] = deque(maxlen=CATCH_UP_WINDOWS)
        self._is_asleep = False
        self._volume = 0.0

    async def analyze_audio(self, buffer: bytes) -> VADState:
        """Take the next sound and say whether someone speaks."""
        return self._run_analyzer(buffer)

    def voice_confidence(self, buffer: bytes) -> float:
        """Say how sure it is that this window is speech; 0 where it is too quiet for that to matter."""
        self._volume = super()._get_smoothed_volume(buffer)
        if self._volume < self.params.min_volume:
            self._missed.append(buffer)
            self._is_asleep = True
            return 0.0
        if self._is_asleep:
            self._wake_up()
        return super().voice_confidence(buffer)

    def _get_smoothed_volume(self, audio: bytes) -> float:
        return self._volume  # Pipecat asks after the confidence, for which it was needed

    def _wake_up(self) -> None:
        if len(self._missed) == CATCH_UP_WINDOWS:
            self._model.reset_states()  # type: ignore[no-untyped-call]  # Pipecat's
            self._windows_since_reset = 0
        for window in self._missed:
            super().voice_confidence(window)
        self._missed.clear()
        self._is_asleep = False
