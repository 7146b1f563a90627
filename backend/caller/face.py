"""What the person who called sees: each stage as it is reached, what is said, and how loud."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, TextIO

from backend.caller.hearing import decibels
from backend.caller.participant import Participant, Transcript
from backend.caller.stages import MEANINGS, Stage

REDRAW_SECONDS = 0.1
METER_CELLS = 20
QUIETEST_DB = -60.0
"""Where the meter begins; speech is above -40."""


class Face:
    """One that shows nothing: for programs, and for many calls at a time."""

    def started(self, session_id: str, status: str) -> None:
        """Say that there is a session."""

    def reached(self, stage: Stage, ms: float) -> None:
        """Say that a stage was reached."""

    def answered(self, ms: float) -> None:
        """Say that an answer is heard, so long after the question."""

    def shown(self, transcript: Transcript) -> None:
        """Show what somebody said."""

    def concluded(self, report: Mapping[str, Any]) -> None:
        """Sum up the call."""

    async def watch(self, participant: Participant) -> None:
        """Show how loud both are, until cancelled."""


class Terminal(Face):
    """Lines of text; on a terminal also what is said, and a meter below the last line."""

    def __init__(self, output: TextIO, *, has_transcript: bool = True) -> None:
        self._output = output
        self._is_live = output.isatty()
        # What is said is for the eye of who called: not for a file or a program that reads along.
        self._has_transcript = has_transcript and self._is_live
        self._meter = ""

    def say(self, line: str) -> None:
        """Print one line above the meter."""
        self._draw(f"{plain(line)}\n")

    def started(self, session_id: str, status: str) -> None:
        """Say that there is a session."""
        self.say(f"session {session_id}, {status}")
        if status == "waiting":
            self.say("no agent is free yet: waiting in the line")

    def reached(self, stage: Stage, ms: float) -> None:
        """Say that a stage was reached."""
        self.say(f"{ms:8.0f} ms  {MEANINGS[stage]}")

    def answered(self, ms: float) -> None:
        """Say that an answer is heard, so long after the question."""
        self.say(f"{ms:8.0f} ms  from the end of the question to its answer")

    def shown(self, transcript: Transcript) -> None:
        """Show what somebody said, once it is final."""
        if self._has_transcript and transcript.is_final:
            self.say(f"{'you' if transcript.is_own else transcript.speaker}: {transcript.text}")

    def concluded(self, report: Mapping[str, Any]) -> None:
        """Sum up the call."""
        self._meter = ""
        if report["endReason"]:
            self.say(f"{report['durationSeconds'] or 0} s, ended: {report['endReason']} ({report['endedBy']})")
        self.say(f"{report['outcome']}: {report['detail']}" if report["detail"] else str(report["outcome"]))

    async def watch(self, participant: Participant) -> None:
        """Show how loud both are, until cancelled."""
        began = time.monotonic()
        while self._is_live:
            agent, caller = (_bar(loudness) for loudness in (participant.ear.loudness, participant.spoken_loudness))
            self._meter = f"agent [{agent}]  you [{caller}]  {time.monotonic() - began:.0f} s"
            self._draw("")
            await asyncio.sleep(REDRAW_SECONDS)

    def _draw(self, text: str) -> None:
        if not self._is_live:
            self._output.write(text)
        else:
            self._output.write(f"\r\x1b[K{text}{self._meter}")
        self._output.flush()


def _bar(loudness: float) -> str:
    level = (max(decibels(loudness), QUIETEST_DB) - QUIETEST_DB) / -QUIETEST_DB
    return ("#" * round(level * METER_CELLS)).ljust(METER_CELLS)


def plain(text: str) -> str:
    """Without what would steer the terminal: a part of it was written by others."""
    return "".join(character if character.isprintable() else " " for character in text)
