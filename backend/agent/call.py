"""One session, from joining its room to the reason why it ended.

Order: join and confirm while the pipeline is built, then publish and connect the vendors at once (an
agent that was waited for: when its caller is there), with the opening line already on its way; it is
heard when the caller's client has subscribed, and then billed time begins. Whatever ends a call goes
through ``Call._end``; the first time counts.
"""

import asyncio
import signal
import time
from collections.abc import Coroutine
from functools import partial

from livekit import rtc
from loguru import logger
from pipecat.processors.frame_processor import FrameProcessor

from backend.agent import ending, prompt, voices
from backend.agent.briefing import Briefing, Command, Link
from backend.agent.chat import Chat
from backend.agent.early_words import EarlyWords
from backend.agent.ending import GOODBYE_SECONDS, Ending
from backend.agent.pipeline import Models, VoicePipeline
from backend.agent.room import JoinedTransport, Room, RoomGoneError, RoomNotJoinedError
from backend.agent.rules import Clock, Faults, Patience, Remedy, Reminder
from backend.agent.stages import Stage
from backend.agent.turn_trace import TurnTrace
from backend.agent.watchdog import Watchdog
from backend.agent.witness import Reactions, Witness
from backend.common.contract import AGENT_IDENTITY, EndReason, Order
from backend.common.settings import LauncherSettings

LEASE_SECONDS = 20.0
"""After a broken connection an agent is silent until it has leave to speak; this long it waits for it."""
LOOK_SECONDS = 0.2
"""How exact the times of a call are."""
EXIT_SECONDS = 4.0
"""How long the process may take to end after its call."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
WITHOUT_A_WORD = {EndReason.GOODBYE, EndReason.SHUTDOWN}
"""After the one all has been said, and for the other there is no time."""


class Call:
    """One session of this process. ``run`` it once."""

    def __init__(self, settings: LauncherSettings, briefing: Briefing, link: Link, models: Models) -> None:
        self._settings, self._briefing, self._link, self._models = settings, briefing, link, models
        self._trace = briefing.trace
        self._clock = Clock(Patience.of(settings), time.monotonic(), has_begun=briefing.has_begun)
        self._faults = Faults()
        self._room = briefing.joined or Room()
        self._chat = Chat(self._room, self._is_caller, self._on_typed)
        # Who waited in the room missed nothing; and to a successor the caller's client sends nothing.
        is_late = not briefing.joined and not briefing.has_begun
        self._early = EarlyWords(self._room, self._is_caller) if is_late else None
        self._pipeline: VoicePipeline | None = None
        self._is_built = asyncio.Event()
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._ended_at: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> EndReason:
        """Hold the session and return why it ended. Within bounds; the watchdog holds them if the loop cannot."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            # Not ours to end: another agent takes the session, unless this host's launcher stops, which ends it.
            loop.add_signal_handler(number, partial(self._end, EndReason.SHUTDOWN, is_ours=False))
        watchdog = Watchdog(self._settings.log_dir / f"{self._briefing.session_id}.log")
        try:
            for work in (watchdog.stay_watched(self._gone_by), self._obey(), self._hold()):
                self._start(work)
            how = await self._ended
            ended_at_ns = time.time_ns()
            await asyncio.gather(ending.tell(self._link, how), ending.say_goodbye(self._pipeline, how))
            self._trace.detail("end", ended_at_ns, reason=how.reason, ended_by=how.reason.cause)
            return how.reason
        finally:
            await ending.leave(self._pipeline, self._room)
            for task in tuple(self._tasks):
                task.cancel()
            watchdog.arm(EXIT_SECONDS)
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _end(self, reason: EndReason, *, is_ours: bool = True, has_voice: bool = True) -> None:
        """Decide the end, unless it is decided already."""
        if self._ended.done():
            return
        logger.info("the call ends", reason=reason)
        is_heard = self._clock.has_begun and self._is_caller_here()
        may_speak = is_ours and is_heard and has_voice and reason not in WITHOUT_A_WORD
        self._ended_at = time.monotonic()
        self._ended.set_result(
            Ending(reason=reason, is_ours=is_ours, goodbye=prompt.goodbye(reason) if may_speak else "")
        )

    async def _hold(self) -> None:
        entering = asyncio.ensure_future(self._enter())
        await asyncio.sleep(0)  # LiveKit, or Redis, is asked before the building takes the loop for 10 to 30 ms
        voice, transport, pipeline = self._build()
        self._trace.stage("build")
        if not await entering:
            return
        self._start(self._look(pipeline))
        self._room.on("reconnecting", lambda: transport.silence(True))
        self._room.on("reconnected", lambda: self._start(self._speak_again(transport)))
        if self._briefing.was_awaited:  # vendors cost money and a track a part of a core: not for who gave up waiting
            await self._room.occupied(self._is_caller, self._link.caller_came)
        await self._talk(voice, transport, pipeline)

    async def _enter(self) -> bool:
        """Join and ask for leave to speak; False: the call ends."""
        self._room.on("disconnected", self._on_disconnected)
        try:
            await self._room.join(self._briefing.livekit_url, self._briefing.room_token)
            self._link.stages.reach(Stage.JOINED)
        except RoomGoneError:
            self._end(EndReason.ROOM_LOST)
            return False
        except RoomNotJoinedError as error:
            logger.warning("the room could not be joined", cause=str(error))
            self._end(EndReason.AGENT_LOST, is_ours=False)  # another agent may get in
            return False
        self._trace.stage("join_room", was_joined=self._briefing.joined is not None)
        may_speak = await self._link.confirm()
        self._trace.stage("confirm")
        if not may_speak:
            self._end(EndReason.AGENT_LOST, is_ours=False)
        return may_speak

    def _build(self) -> tuple[voices.Voice, JoinedTransport, VoicePipeline]:
        voice = voices.make(self._settings, self._briefing, self._facts())
        transport = JoinedTransport(self._room, self._is_caller, self._early)
        witness = Witness(
            self._clock,
            self._faults,
            self._chat,
            caller=self._briefing.caller_identity,
            reactions=Reactions(
                remedy=self._on_vendor_fault,
                part_failed=self._on_part_failed,
                record=self._link.record,
                farewell=lambda: self._start(self._end_after_farewell()),
                reached=self._link.stages.reach,
            ),
        )
        pipeline = VoicePipeline(transport, voice, self._models, witness=witness, history=self._briefing.history)
        self._link.progress = witness.progress
        self._link.stages.reach(Stage.BUILT)
        return voice, transport, pipeline

    async def _talk(self, voice: voices.Voice, transport: JoinedTransport, pipeline: VoicePipeline) -> None:
        self._pipeline = pipeline
        self._is_built.set()
        if self._trace.is_on:
            pipeline.watch(TurnTrace(self._trace, hear=voice.hear, think=voice.think, speak=voice.speak))
        for work in (self._chat.deliver(), self._be_heard(voice, transport)):
            self._start(work)
        if voice.first_words:
            await pipeline.say(voice.first_words)
        await pipeline.run()
        self._end(EndReason.VENDOR_FAILED)  # over without a reason of ours

    async def _be_heard(self, voice: voices.Voice, transport: JoinedTransport) -> None:
        await transport.published()
        self._trace.stage("publish")
        await transport.subscribed()
        self._trace.stage("caller")
        voice.heard.set()
        self._clock.begin(time.monotonic(), self._briefing.longest_seconds)
        left_seconds = await self._link.begin()
        if left_seconds is None:
            self._end(EndReason.AGENT_LOST, is_ours=False)
        else:
            self._clock.begin(time.monotonic(), left_seconds)

    async def _look(self, pipeline: VoicePipeline) -> None:
        """Do what is due, five times a second."""
        while True:
            now = time.monotonic()
            due = self._clock.look(now, is_caller_here=self._is_caller_here(), is_connected=self._is_connected())
            if isinstance(due, EndReason):
                self._end(due)
                return
            if due is Reminder.STILL_THERE:
                await pipeline.say(prompt.STILL_THERE)
            elif due is Reminder.TIME_WARNING:
                await pipeline.say(prompt.time_warning(self._clock.left_seconds(now) or 0.0))
            if self._faults.is_late(now):
                self._on_vendor_fault(self._faults.answer_failed())
            if pipeline.is_stuck(now):
                logger.error("the pipeline is stuck, and its loop is not")
                self._end(EndReason.AGENT_FAULT, is_ours=False)
            await asyncio.sleep(LOOK_SECONDS)

    async def _obey(self) -> None:
        async for command in self._link.commands():
            if command.order is not Order.END:
                self._start(self._obey_in_call(command))
            elif command.reason:
                self._end(command.reason)
            else:  # the session is another agent's by now, or nobody's
                self._end(EndReason.AGENT_LOST, is_ours=False)

    async def _obey_in_call(self, command: Command) -> None:
        await self._is_built.wait()
        if self._pipeline and command.order is Order.SAY:
            await self._pipeline.say(command.text)
        elif self._pipeline and command.order is Order.PROMPT:
            await self._pipeline.use_prompt(prompt.system_prompt(command.text))

    def _on_disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        if reason == rtc.DisconnectReason.DUPLICATE_IDENTITY:
            # Whoever joined as us last has the room. Was it a stale agent, then it leaves again, and a successor comes.
            self._end(EndReason.AGENT_LOST, is_ours=False)
        elif reason == rtc.DisconnectReason.ROOM_CLOSED:
            # The server saw the caller leave 20 s ago. We are not told of one who leaves within moments of joining.
            self._end(self._clock.absence)
        else:
            self._end(EndReason.ROOM_LOST)

    async def _speak_again(self, transport: JoinedTransport) -> None:
        """Ask first: the library reconnects by itself, perhaps into a room where a successor speaks."""
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                has_leave = await self._link.confirm()
        except TimeoutError:
            has_leave = False
        if has_leave:
            transport.silence(False)
        else:
            self._end(EndReason.AGENT_LOST, is_ours=False)

    def _on_typed(self, text: str) -> None:
        if self._pipeline:
            self._start(self._pipeline.hear_typed(text))

    async def _end_after_farewell(self) -> None:
        await ending.let_farewell_be_heard(self._pipeline)
        self._end(EndReason.GOODBYE)

    def _on_part_failed(self, part: FrameProcessor | None, has_voice: bool) -> None:
        logger.warning("a vendor failed for good", part=type(part).__name__)
        self._end(EndReason.VENDOR_FAILED, has_voice=has_voice)

    def _on_vendor_fault(self, remedy: Remedy) -> None:
        logger.warning("a vendor failed", remedy=remedy)
        if remedy is Remedy.GIVE_UP:
            self._end(EndReason.VENDOR_FAILED)
        elif self._pipeline:
            self._start(self._pipeline.interrupt_with(prompt.APOLOGY))

    def _is_caller(self, identity: str) -> bool:
        # An agent that runs alone was not told the caller's identity.
        return identity == (self._briefing.caller_identity or identity) and identity != AGENT_IDENTITY

    def _is_caller_here(self) -> bool:
        return any(self._is_caller(identity) for identity in self._room.remote_participants)

    def _is_connected(self) -> bool:
        return self._room.connection_state == rtc.ConnectionState.CONN_CONNECTED

    def _gone_by(self) -> float | None:
        since = self._clock.deadline if self._ended_at is None else self._ended_at
        return None if since is None else since + GOODBYE_SECONDS

    def _facts(self) -> voices.Facts:
        return voices.Facts(
            talked_seconds=self._talked_seconds,
            left_seconds=lambda: self._clock.left_seconds(time.monotonic()),
            agent_id=self._briefing.agent_id,
            host_id=self._briefing.host_id,
            session_id=self._briefing.session_id,
            generation=self._briefing.generation,
            user_name=self._briefing.user_name,
        )

    def _talked_seconds(self) -> float:
        """How long the session has talked, with its earlier agents too."""
        left_seconds = self._clock.left_seconds(time.monotonic())
        return 0.0 if left_seconds is None else self._briefing.longest_seconds - left_seconds

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.opt(exception=error).error("the agent failed")
            self._end(EndReason.AGENT_FAULT, is_ours=False)  # of this process; another one may do better
