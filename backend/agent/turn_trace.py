"""Traces the opening line, and each turn from the end of the caller's speech to the first sound of the answer.

The stages of a turn: hear (the turn is over and its words are there), think (the language model's first
word), speak (the first speech), play (the first sound out of the transport).
"""

import time

from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMTextFrame,
    MetricsFrame,
    TTSAudioRawFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from backend.common.tracing import NO_TRACE, Trace


class TurnTrace(BaseObserver):
    """Observes one pipeline; made when the opening line is about to be asked for, and only where traces are on."""

    def __init__(self, trace: Trace, *, hear: FrameProcessor, think: FrameProcessor, speak: FrameProcessor) -> None:
        super().__init__(observe_every_push=False)
        self._trace, self._think = trace, think
        self._services = {hear.name: "stt", think.name: "llm", speak.name: "tts"}
        self._asked_ns, self._has_sounded = time.time_ns(), False
        self._turn, self._reached = NO_TRACE, set[str]()

    async def on_started(self, *_: object) -> None:
        """Note that the vendors are connected."""
        self._trace.stage("connect")

    async def on_push_frame(self, data: FramePushed) -> None:
        """Look at one frame."""
        match data.frame:
            case VADUserStoppedSpeakingFrame():
                self._begin_turn()
            case LLMContextFrame() if data.destination is self._think or data.direction is FrameDirection.UPSTREAM:
                self._reach("hear")
            case LLMTextFrame():
                self._reach("think")
            case TTSAudioRawFrame():
                self._on_speech()
            case BotStartedSpeakingFrame():
                self._on_sound()
            case VADUserStartedSpeakingFrame() | InterruptionFrame():
                self._end_turn(is_interrupted=True)
            case MetricsFrame():
                self._note_waits(data.frame)

    def _begin_turn(self) -> None:
        self._end_turn(is_interrupted=True)
        self._turn = self._trace.child("turn", time.time_ns())

    def _reach(self, stage: str) -> None:
        if stage not in self._reached and self._turn is not NO_TRACE:
            self._reached.add(stage)
            self._turn.stage(stage)

    def _on_speech(self) -> None:
        if not self._has_sounded and self._asked_ns:
            self._trace.detail("opening_line", self._asked_ns)
            self._asked_ns = 0
        if "think" in self._reached:  # else it is still the last answer's
            self._reach("speak")

    def _on_sound(self) -> None:
        if not self._has_sounded:
            self._has_sounded = True
            self._trace.stage("first_sound")
            self._trace.end()
        elif "speak" in self._reached:
            self._reach("play")
            self._end_turn()

    def _end_turn(self, *, is_interrupted: bool = False) -> None:
        # Else it was a pause in what the caller says: a span that is not ended is never sent.
        if "hear" in self._reached:
            self._turn.note(is_interrupted=is_interrupted)
            self._turn.end()
        self._turn, self._reached = NO_TRACE, set()

    def _note_waits(self, frame: MetricsFrame) -> None:
        for metrics in frame.data:
            if isinstance(metrics, TTFBMetricsData) and metrics.processor in self._services:
                self._turn.note(**{f"{self._services[metrics.processor]}_first_ms": round(metrics.value * 1000)})
