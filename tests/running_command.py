"""The command ``greenroom`` as a process of its own."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.common.settings import PROGRAMS

ROOT = Path(__file__).parents[1]
END_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a run came to."""

    code: int
    output: str
    errors: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        """Its output, which must be one JSON document in each line."""
        return [json.loads(line) for line in self.output.splitlines()]


class RunningCommand:
    """One run, under way."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._seen = ""

    async def says(self, words: str) -> None:
        """Wait until these words are in its output."""
        assert self.process.stdout
        async with asyncio.timeout(END_SECONDS):
            while words not in self._seen:
                line = await self.process.stdout.readline()
                assert line, f"it ended without saying {words!r}: {self._seen}"
                self._seen += line.decode()

    async def end(self, told: str = "") -> Ran:
        """Tell it something, if it is to be, and wait for its end."""
        async with asyncio.timeout(END_SECONDS):
            output, errors = await self.process.communicate(told.encode())
        assert self.process.returncode is not None
        return Ran(code=self.process.returncode, output=self._seen + output.decode(), errors=errors.decode())


@asynccontextmanager
async def a_command(*arguments: str | Path, **variables: str) -> AsyncIterator[RunningCommand]:
    """Start ``greenroom`` with these arguments, and of our variables with these alone."""
    ours = {str(field.validation_alias) for program in PROGRAMS for field in program.model_fields.values()}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | variables
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backend.caller", *map(str, arguments)),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield RunningCommand(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run_command(*arguments: str | Path, told: str = "", **variables: str) -> Ran:
    """Run ``greenroom`` to its end."""
    async with a_command(*arguments, **variables) as command:
        return await command.end(told)
