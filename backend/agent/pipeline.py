"""The voice pipeline as one list: hear, think, speak; and the few things that a call does with it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from loguru import logger
from pipecat.audio.turn.smart_turn.base_smart_turn import SmartTurnParams
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3
from pipecat.frames.frames import (
    BotSpeakingFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    ErrorFrame,
    Frame,
    HeartbeatFrame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMMessagesAppendFrame,
    LLMUpdateSettingsFrame,
    TTSSpeakFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker, ProcessorUnusablePolicy
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.settings import LLMSettings
from pipecat.turns.user_stop import TurnAnalyzerUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from backend.agent.briefing import Turn
from backend.agent.room import JoinedTransport
from backend.agent.stages import Stage
from backend.agent.turn_trace import TurnTrace
from backend.agent.voice_activity import VoiceActivity
from backend.agent.voices import GoodbyeFrame, Voice
from backend.agent.voices.shared import Socket
from backend.agent.witness import Witness

SETUP_SECONDS = 4.0
"""A part that does not get ready holds the greeting back for so long; a vendor's socket holds nothing back."""
STUCK_SECONDS = 7.5
"""Without progress for so long, another agent is to take the call. Longer than an answer may take to begin."""
TURN_STOP_SECONDS = 3.0
"""How long a finished turn waits for its transcript."""
SMART_TURN_SECONDS = 1.2
"""When the turn model is wrong, this much silence ends the turn; its own default of 3 is felt as being ignored."""


@dataclass(frozen=True)
class Models:
    """What hears that someone speaks, and that they are done. Loaded before the fork, used by one call."""

    voice_activity: VoiceActivity
    end_of_turn: LocalSmartTurnAnalyzerV3

    @classmethod
    def load(cls) -> "Models":
        """Load both from the wheel: 0.3 s, no network."""
        return cls(VoiceActivity(), LocalSmartTurnAnalyzerV3(params=SmartTurnParams(stop_secs=SMART_TURN_SECONDS)))


class Spoken(FrameProcessor):
    """Stands after the output: what arrives here, the caller is about to hear."""

    def __init__(self, said: Callable[[str], None], farewell: Callable[[], None]) -> None:
        super().__init__(enable_direct_mode=True)  # it only looks: no queue, no task
        self.is_silent = asyncio.Event()
        self.is_silent.set()
        self.last_words_over = asyncio.Event()
        self.moved_at: float | None = None
        """When something came through the whole pipeline for the last time; None before it started."""
        self._said, self._farewell = said, farewell
        self._was_interrupted = self._has_last_words = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Note what is heard, and pass it on."""
        await super().process_frame(frame, direction)
        match frame:
            case HeartbeatFrame() | BotSpeakingFrame():  # the one waits its turn behind long speech, which is the other
                self.moved_at = time.monotonic()
            case TTSTextFrame():
                self._said(frame.text)
            case InterruptionFrame():
                self._was_interrupted = True
            case BotStartedSpeakingFrame():
                self.is_silent.clear()
                self._has_last_words = self._was_interrupted
            case BotStoppedSpeakingFrame():
                self.is_silent.set()
                if self._has_last_words:
                    self.last_words_over.set()
            case GoodbyeFrame():
                self._farewell()
        await self.push_frame(frame, direction)

    def expect_last_words(self) -> None:
        """From here on: an interruption, the last words, and then it is over."""
        self._was_interrupted = self._has_last_words = False
        self.last_words_over.clear()


class VoicePipeline:
    """One call's pipeline; it hears and speaks while ``run`` runs."""

    def __init__(
        self,
        transport: JoinedTransport,
        voice: Voice,
        models: Models,
        *,
        witness: Witness,
        history: tuple[Turn, ...] = (),
    ) -> None:
        self.has_started = False
        self.is_over = asyncio.Event()
        self._voice, self._transport, self._witness = voice, transport, witness
        self._spoken = Spoken(witness.agent_said, witness.reactions.farewell)
        aggregators = _aggregators(voice, models, history)
        _end_sound_at(aggregators.user())
        witness.watch(aggregators, voice.think)
        self._worker = _worker(
            [
                transport.input(),
                voice.hear,
                aggregators.user(),
                voice.think,
                voice.speak,
                transport.output(),
                self._spoken,
                aggregators.assistant(),
            ],
            witness,
        )
        self._runner = WorkerRunner(handle_sigint=False, handle_sigterm=False)
        self._worker.add_event_handler("on_pipeline_started", self._on_started)
        self._worker.add_event_handler("on_pipeline_error", self._on_error)
        self._worker.add_event_handler("on_setup_timeout", self._on_timeout)
        self._worker.add_event_handler("on_pipeline_timeout", self._on_timeout)

    def watch(self, turns: TurnTrace) -> None:
        """Let the turns be traced."""
        self._worker.add_observer(turns)
        self._worker.add_event_handler("on_pipeline_started", turns.on_started)

    def is_stuck(self, now: float) -> bool:
        """Whether for too long nothing came through: no word out of the mind, no heartbeat or sound to the end."""
        moved_at = self._spoken.moved_at
        return moved_at is not None and now - max(moved_at, self._witness.thought_at) >= STUCK_SECONDS

    async def run(self) -> None:
        """Publish and connect the vendors at once, then talk, until ``stop``."""
        try:
            await self._runner.add_workers(self._worker)
            await self._runner.run()
        finally:
            self.is_over.set()

    async def stop(self, reason: str) -> None:
        """Stop now. Never by an EndFrame: nothing can overtake one that is stuck behind a long answer."""
        await self._runner.cancel(reason)

    async def say(self, text: str) -> None:
        """Say it after what is being said; the caller may interrupt it."""
        await self._worker.queue_frames([TTSSpeakFrame(text)])

    async def interrupt_with(self, text: str) -> None:
        """Say it at once instead of what is being said or thought."""
        await self._worker.queue_frames([InterruptionFrame(), TTSSpeakFrame(text)])

    async def say_last(self, text: str) -> None:
        """Say it at once, uninterrupted, and wait until it was heard. Has no bound of its own."""
        frame = TTSSpeakFrame(text)
        frame.interruptible = False  # not an argument of its constructor
        self._spoken.expect_last_words()
        await self._worker.queue_frames([InterruptionFrame(), frame])
        await self._spoken.last_words_over.wait()
        await self._transport.played()

    async def all_heard(self) -> None:
        """Wait until what is being said was heard."""
        await self._spoken.is_silent.wait()
        await self._transport.played()

    async def hear_typed(self, text: str) -> None:
        """Take typed text as if it had been said."""
        message: LLMContextMessage = {"role": "user", "content": text}
        await self._worker.queue_frames([InterruptionFrame(), LLMMessagesAppendFrame([message], run_llm=True)])
        await self._witness.caller_typed(text)

    async def use_prompt(self, text: str) -> None:
        """Think with this system prompt from the next answer on."""
        await self._worker.queue_frames([LLMUpdateSettingsFrame(delta=LLMSettings(system_instruction=text))])

    async def _on_started(self, *_: object) -> None:
        self.has_started = True
        self._witness.reactions.reached(Stage.CONNECTED)

    async def _on_error(self, _: object, error: ErrorFrame) -> None:
        # Never its message, which may quote the call: the category tells a refused key from a vendor who is not there.
        category = error.category.value if error.category else "unknown"
        kind = type(error.exception).__name__ if error.exception else ""
        logger.warning("a part complains", part=type(error.processor).__name__, category=category, error=kind)
        # While it starts, no retries: they would be 12 to 24 s of an agent that is deaf or dumb.
        if error.processor and not (error.processor.is_usable and self._is_past_start(error.processor)):
            self._witness.reactions.part_failed(
                error.processor, self.has_started and error.processor is not self._voice.speak
            )

    def _is_past_start(self, part: FrameProcessor) -> bool:
        return self.has_started and (not isinstance(part, Socket) or part.was_connected)

    async def _on_timeout(self, *_: object) -> None:
        self._witness.reactions.part_failed(None, False)


def _end_sound_at(ears: FrameProcessor) -> None:
    """Let the caller's sound end behind the ears: nobody further down wants it, 31 times a second."""
    push = ears.push_frame

    async def push_all_else(frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM) -> None:
        if not isinstance(frame, InputAudioRawFrame):
            await push(frame, direction)

    # Not by a processor of its own: observers tell by the first push that the model was asked.
    ears.push_frame = push_all_else  # type: ignore[method-assign]  # Pipecat makes the aggregators, not we


def _aggregators(voice: Voice, models: Models, history: tuple[Turn, ...]) -> LLMContextAggregatorPair:
    messages: list[LLMContextMessage] = [_message(turn) for turn in history]
    context = LLMContext(messages, tools=list(voice.tools)) if voice.tools else LLMContext(messages)
    return LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(
            vad_analyzer=models.voice_activity,
            user_turn_stop_timeout=TURN_STOP_SECONDS,
            user_turn_strategies=UserTurnStrategies(
                stop=[TurnAnalyzerUserTurnStopStrategy(turn_analyzer=models.end_of_turn)]
            ),
        ),
    )


def _message(turn: Turn) -> LLMContextMessage:
    if turn.role == "user":
        return {"role": "user", "content": turn.text}
    return {"role": "assistant", "content": turn.text}


def _worker(processors: list[FrameProcessor], witness: Witness) -> PipelineWorker:
    return PipelineWorker(
        Pipeline(processors),
        params=PipelineParams(
            enable_metrics=True,
            enable_usage_metrics=True,
            enable_heartbeats=True,
            heartbeats_monitor_secs=3_600,  # Pipecat would only log, and long speech holds them up
        ),
        observers=[witness],
        enable_rtvi=False,  # it obeys anyone in the room who can send data
        enable_turn_tracking=False,
        idle_timeout_secs=None,  # silence is the call's business
        setup_timeout_secs=SETUP_SECONDS,
        start_timeout_secs=SETUP_SECONDS,
        cancel_timeout_secs=2.0,
        # CANCEL would take the voice away before it could apologise; the call ends it by itself.
        processor_unusable_policy=ProcessorUnusablePolicy.CONTINUE,
    )
