"""One call from its start to its end, as it was planned, and the report of it."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.caller.caller import Caller, Question
from backend.caller.devices import Devices
from backend.caller.errors import CallFailedError, Outcome, PutOutError
from backend.caller.face import Face
from backend.caller.rest import Greenroom
from backend.caller.stages import Stage, Stages

FINISH_SECONDS = 15.0
"""How long the agent may speak before the caller does not wait any more for it to finish."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the caller means to do."""

    wish: Mapping[str, str]
    """The fields of the request that starts the session."""
    questions: tuple[Question, ...] = ()
    patience_seconds: float
    """How long to wait for the agent's first sound, and for each answer."""
    stay_seconds: float | None = None
    """How long to stay after the first sound; None: until the agent has finished speaking."""
    is_brief: bool = False
    """End as soon as the agent was heard and every question answered."""
    uses_devices: bool = False
    """Talk by this machine's microphone and loudspeaker."""


@dataclass(kw_only=True)
class Report:
    """What became of one call."""

    outcome: Outcome = Outcome.OK
    detail: str = ""
    """Why it is not ok, in words."""
    session_id: str | None = None
    status: str | None = None
    """``assigned``, or ``waiting`` when no agent was free at the start."""
    stages: Stages = field(default_factory=Stages)
    answers_ms: list[float] = field(default_factory=list)
    """From the end of each question to the first sound of its answer."""
    record: dict[str, Any] = field(default_factory=dict)
    """The session as the API showed it after its end."""

    def __str__(self) -> str:
        heard = self.stages.reached_ms.get(Stage.FIRST_SOUND)
        sound = "no sound" if heard is None else f"first sound after {heard:.0f} ms"
        why = f": {self.detail}" if self.detail else ""
        return f"{self.session_id or 'no session'}, {self.status or 'not started'}, {sound}, {self.outcome}{why}"

    def as_json(self) -> dict[str, Any]:
        """For programs; no word of the conversation is in it."""
        return {
            "outcome": self.outcome,
            "detail": self.detail or None,
            "sessionId": self.session_id,
            "status": self.status,
            "stagesMs": {stage.value: round(ms, 1) for stage, ms in self.stages.reached_ms.items()},
            "answersMs": [round(ms, 1) for ms in self.answers_ms],
            **{name: self.record.get(name) for name in ("durationSeconds", "endReason", "endedBy")},
        }


async def place(greenroom: Greenroom, plan: Plan, face: Face) -> Report:
    """Place one call. A cancellation ends it properly: the report then says ``interrupted``.

    Raises:
        devices.NoDevicesError: the plan wants a microphone, and there is none.
    """
    report = Report(stages=Stages(face.reached))
    devices = Devices() if plan.uses_devices else None
    async with Caller(greenroom, stages=report.stages, devices=devices, on_transcript=face.shown) as caller:
        meter = asyncio.ensure_future(face.watch(caller.participant))
        try:
            await _talk(caller, plan, report, face)
        except CallFailedError as error:
            report.outcome, report.detail = error.outcome, str(error)
        except asyncio.CancelledError:
            report.outcome = Outcome.INTERRUPTED
        finally:
            meter.cancel()
            await asyncio.gather(meter, return_exceptions=True)
        await _conclude(caller, report)
    face.concluded(report.as_json())
    return report


async def _talk(caller: Caller, plan: Plan, report: Report, face: Face) -> None:
    started = await caller.start(**plan.wish)
    report.session_id, report.status = started.session_id, started.status
    face.started(started.session_id, started.status)
    await caller.connect()
    await caller.first_sound(within=plan.patience_seconds)
    heard_at = time.monotonic()
    for question in plan.questions:
        await caller.finished_speaking(within=FINISH_SECONDS)
        report.answers_ms.append(await caller.ask(question, within=plan.patience_seconds))
        face.answered(report.answers_ms[-1])
    if plan.stay_seconds is not None:
        await caller.stay(seconds=heard_at + plan.stay_seconds - time.monotonic())
    elif not plan.is_brief:
        await caller.finished_speaking(within=FINISH_SECONDS)


async def _conclude(caller: Caller, report: Report) -> None:
    if caller.started is None:
        return
    report.session_id, report.status = caller.started.session_id, caller.started.status
    try:
        if report.outcome is PutOutError.outcome:
            report.outcome = judge(await caller.show(), was_heard=Stage.FIRST_SOUND in report.stages.reached_ms)
        await caller.end()
        report.record = await caller.show()
    except CallFailedError as error:
        if report.outcome is Outcome.OK:
            report.outcome, report.detail = error.outcome, str(error)
    if report.outcome is Outcome.OK:
        report.detail = ""


def judge(record: Mapping[str, Any], *, was_heard: bool) -> Outcome:
    """What it means that the room was closed before the caller was done, by the session's record.

    An agent that says goodbye, a limit and another client end a call in good order; the platform does not, and
    a session that goes on without its room has lost it.
    """
    if record["status"] != "ended" or record["endedBy"] == "platform":
        return Outcome.CUT_OFF
    return Outcome.OK if was_heard else Outcome.UNHEARD
