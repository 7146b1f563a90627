"""A speech process as an agent sees it: asked one thing at a time, started again once when it dies."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from loguru import logger

PROGRAM = Path(__file__).with_name("demo_speech.py")
LIBRARIES = {"speak": "espeakng_loader", "hear": "pocketsphinx"}
ANSWER_SECONDS = 5.0
"""Longest wait for one answer: 0.05 s is usual, and the first one waits until all is loaded, 0.3 s."""

_GONE = (OSError, EOFError, asyncio.LimitOverrunError, json.JSONDecodeError)


class SpeechError(Exception):
    """A speech process gave no answer; it has been ended, and the next request starts another."""


def library_folder(what: str) -> str | None:
    """Where the library is installed, without importing it; None when it is not."""
    found = importlib.util.find_spec(LIBRARIES[what])
    return str(Path(found.origin).parents[1]) if found and found.origin else None


class SpeechProcess:
    """One process that speaks or hears."""

    def __init__(self, what: str, questions: tuple[str, ...] = ()) -> None:
        self._command = (sys.executable, "-I", "-S", str(PROGRAM), what, library_folder(what) or "")
        self._questions = json.dumps(questions)
        self._what = what
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The running process; None when there is none."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start it, without waiting until it has loaded its library."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            self._questions,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},  # foreign code needs none of our keys
        )

    async def ask(
        self, message: dict[str, Any], sound: bytes = b"", *, timeout_seconds: float = ANSWER_SECONDS
    ) -> tuple[dict[str, Any], bytes]:
        """Send one message and return its answer; a process that died is started again, once.

        Raises:
            SpeechError: it died twice, or did not answer in time.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(timeout_seconds):
                    return await self._ask_again(message, sound)
            except TimeoutError as error:
                raise SpeechError(f"no answer in {timeout_seconds} s: {self._what}") from error
            except _GONE as error:
                raise SpeechError(f"died twice: {self._what}") from error

    async def stop(self) -> None:
        """End it and wait until it is gone; again changes nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def _ask_again(self, message: dict[str, Any], sound: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            return await self._ask(message, sound)
        except _GONE:
            logger.warning("a speech process died and is started again", what=self._what)
            return await self._ask(message, sound)

    async def _ask(self, message: dict[str, Any], sound: bytes) -> tuple[dict[str, Any], bytes]:
        if self._process is None:
            await self.start()
        try:
            return await self._exchange(message, sound)
        except BaseException:
            # Cancelled in the middle, too: what is still to be read belongs to nobody.
            await self.stop()
            raise

    async def _exchange(self, message: dict[str, Any], sound: bytes) -> tuple[dict[str, Any], bytes]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EOFError("not started")
        process.stdin.write(json.dumps({**message, "bytes": len(sound)}).encode() + b"\n" + sound)
        await process.stdin.drain()
        answer: dict[str, Any] = json.loads(await process.stdout.readuntil())
        return answer, await process.stdout.readexactly(answer["bytes"])
