"""Sees and hears everything in one call: keeps the record, the transcripts, the usage and the count of faults."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from loguru import logger
from pipecat.frames.frames import (
    BotSpeakingFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    ErrorFrame,
    Frame,
    FunctionCallsStartedFrame,
    InterimTranscriptionFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    MetricsFrame,
    TranscriptionFrame,
    UserSpeakingFrame,
    UserStartedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import LLMUsageMetricsData, MetricsData, STTUsageMetricsData, TTSUsageMetricsData
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMContextAggregatorPair,
    UserTurnStoppedMessage,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from backend.agent.briefing import Turn
from backend.agent.chat import Chat, Segment
from backend.agent.rules import Clock, Faults, Remedy
from backend.agent.stages import Stage
from backend.common.contract import AGENT_IDENTITY, Progress


@dataclass(frozen=True, kw_only=True)
class Reactions:
    """What the call does about what is seen."""

    remedy: Callable[[Remedy], None]
    """A vendor failed."""
    part_failed: Callable[[FrameProcessor | None, bool], None]
    """A part failed for good, None: it is not known which; and whether the agent can still speak."""
    record: Callable[[Turn], Awaitable[None]]
    """A turn is finished."""
    farewell: Callable[[], None]
    """The caller wished to go, and is being bidden farewell."""
    reached: Callable[[Stage], None]
    """The start got so far."""


class Witness(BaseObserver):
    """Observes one pipeline, each frame once, when it is first pushed."""

    def __init__(self, clock: Clock, faults: Faults, chat: Chat, *, caller: str, reactions: Reactions) -> None:
        super().__init__(observe_every_push=False)
        self._clock, self._faults, self._chat, self.reactions = clock, faults, chat, reactions
        self._frames = 0
        self._usage = {"speech_ms": 0, "characters": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._caller = caller
        self._caller_segment, self._agent_segment = Segment(speaker=caller), Segment(speaker=AGENT_IDENTITY)
        self._speech_began_at: float | None = None
        self._speech_seconds = 0.0
        self._think: FrameProcessor | None = None
        self.thought_at = 0.0
        """When the language model said something for the last time; what comes behind it waits for its last word."""

    def watch(self, aggregators: LLMContextAggregatorPair, think: FrameProcessor) -> None:
        """Take part in the turns; the errors of ``think`` are failed answers."""
        self._think = think
        user, assistant = aggregators
        user.add_event_handler("on_user_turn_stopped", self._caller_finished)
        assistant.add_event_handler("on_assistant_turn_stopped", self._agent_finished)

    def progress(self) -> Progress:
        """Return what the next heartbeat carries."""
        return Progress(frames=self._frames, usage=dict(self._usage))

    def agent_said(self, words: str) -> None:
        """Note words of the running turn as the caller hears them."""
        segment = self._agent_segment
        segment.text = f"{segment.text} {words}".strip()
        self._chat.show(segment)

    async def caller_typed(self, text: str) -> None:
        """Note a typed message: it raises no event of its own."""
        self._clock.caller_spoke(time.monotonic())
        await self.reactions.record(Turn(role="user", text=text))

    async def on_push_frame(self, data: FramePushed) -> None:
        """Look at one frame."""
        self._frames += 1
        frame, now = data.frame, time.monotonic()
        match frame:
            case MetricsFrame():
                for metrics in frame.data:
                    self._count(metrics)
            case ErrorFrame():
                self._see_error(frame)
            case InterimTranscriptionFrame() | TranscriptionFrame():
                self._hear_caller(frame, now)
            case _:
                self._see_caller(frame, now)
                self._see_agent(frame, now)
                self._see_answer(data, now)

    def _count(self, metrics: MetricsData) -> None:
        match metrics:
            case STTUsageMetricsData():
                self._usage["speech_ms"] += round(metrics.value.audio_seconds * 1000)
            case TTSUsageMetricsData():
                self._usage["characters"] += metrics.value
            case LLMUsageMetricsData():
                self._usage["prompt_tokens"] += metrics.value.prompt_tokens
                self._usage["completion_tokens"] += metrics.value.completion_tokens

    def _see_error(self, frame: ErrorFrame) -> None:
        # Ears and voice reconnect by themselves; what counts there is whether the caller is heard and hears.
        if frame.processor is None or frame.processor is not self._think:
            return
        if frame.processor.is_usable:
            self._react(self._faults.answer_failed())
        else:  # the call ends by what the pipeline reports; an apology would only be in the way
            self._faults.answer_dropped()

    def _hear_caller(self, frame: InterimTranscriptionFrame | TranscriptionFrame, now: float) -> None:
        self._clock.caller_spoke(now)
        if isinstance(frame, InterimTranscriptionFrame):
            self._caller_segment.text = frame.text
            self._chat.show(self._caller_segment)

    def _see_caller(self, frame: Frame, now: float) -> None:
        match frame:
            case VADUserStartedSpeakingFrame():
                self._speech_began_at = now if self._speech_began_at is None else self._speech_began_at
                self._clock.caller_spoke(now)
            case VADUserStoppedSpeakingFrame():
                if self._speech_began_at is not None:
                    self._speech_seconds += now - self._speech_began_at
                self._speech_began_at = None
                self._clock.caller_spoke(now)
            case UserSpeakingFrame():
                self._clock.caller_spoke(now)
            case UserStartedSpeakingFrame():
                self._chat.show_state("listening")

    def _see_agent(self, frame: Frame, now: float) -> None:
        match frame:
            case BotSpeakingFrame():
                self._clock.agent_spoke(now)
            case BotStartedSpeakingFrame():
                self.reactions.reached(Stage.FIRST_SOUND)
                self._chat.show_state("speaking")
            case BotStoppedSpeakingFrame():
                self._clock.agent_spoke(now)
                self._chat.show_state("thinking" if self._faults.is_waiting else "listening")

    def _see_answer(self, data: FramePushed, now: float) -> None:
        match data.frame:
            # One that starts behind the language model and goes on downstream only says that a turn was added.
            case LLMContextFrame() if data.destination is self._think or data.direction is FrameDirection.UPSTREAM:
                self._faults.answer_asked(now)
                self._chat.show_state("thinking")
            case LLMTextFrame() | FunctionCallsStartedFrame():
                self.thought_at = now
                self._faults.answer_began()
            case LLMFullResponseEndFrame():
                self._react(self._faults.answer_ended())
            case InterruptionFrame():
                self._faults.answer_dropped()

    def _react(self, remedy: Remedy | None) -> None:
        if remedy:
            self.reactions.remedy(remedy)

    async def _caller_finished(self, _: object, __: object, message: UserTurnStoppedMessage) -> None:
        text = (message.content or "").strip()
        self._react(self._faults.turn_ended(text, self._speech_seconds))
        self._speech_seconds = 0.0
        segment, self._caller_segment = self._caller_segment, Segment(speaker=self._caller)
        await self._finish(segment, Turn(role="user", text=text))

    async def _agent_finished(self, _: object, message: AssistantTurnStoppedMessage) -> None:
        segment, self._agent_segment = self._agent_segment, Segment(speaker=AGENT_IDENTITY)
        await self._finish(segment, Turn(role="assistant", text=message.content, interrupted=message.interrupted))

    async def _finish(self, segment: Segment, turn: Turn) -> None:
        if not turn.text:  # an interruption before the first word, or a noise
            return
        logger.debug("turn finished", role=turn.role, characters=len(turn.text), interrupted=turn.interrupted)
        segment.text, segment.is_final = turn.text, True
        self._chat.show(segment)
        await self.reactions.record(turn)
