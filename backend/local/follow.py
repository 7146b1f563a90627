"""Repeat the programs' logs on standard output, for whoever collects that: LOG_FORMAT=json."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PROGRAMS = ("api", "worker", "beat", "launcher")
"""Those that log in our format."""

EVERY_SECONDS = 0.25


class Followed:
    """One log file, read from its present end on; supervisord replaces it when it has grown long."""

    def __init__(self, path: Path) -> None:
        self.program = path.stem
        self._path = path
        path.touch(mode=0o600)
        self._file: BinaryIO = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._unfinished = b""

    def new_lines(self) -> list[bytes]:
        """Return what was written since the last call, whole lines only."""
        text = self._unfinished + self._file.read()
        if self._was_replaced():
            text += self._file.read()  # what came between the read above and the replacement
            self._file.close()
            self._file = self._path.open("rb")
            text += self._file.read()
        *lines, self._unfinished = text.split(b"\n")
        return lines

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _was_replaced(self) -> bool:
        return self._path.exists() and not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())


def as_json(line: bytes, program: str) -> bytes:
    """Give a line as it is, or wrapped: what a library prints by itself is not JSON."""
    if line.startswith(b"{") and line.endswith(b"}"):
        return line
    return json.dumps({"program": program, "message": line.decode(errors="replace")}).encode()


@contextmanager
def followed(logs: Path) -> Iterator[None]:
    """Repeat the programs' logs while the block runs, and their last lines after it."""
    done = threading.Event()
    files = [Followed(logs / f"{program}.log") for program in PROGRAMS]

    def repeat_until_done() -> None:
        while not done.wait(EVERY_SECONDS):
            _repeat(files)
        _repeat(files)

    repeater = threading.Thread(target=repeat_until_done, daemon=True)
    repeater.start()
    try:
        yield
    finally:
        done.set()
        repeater.join()
        for file in files:
            file.close()


def _repeat(files: list[Followed]) -> None:
    for file in files:
        for line in file.new_lines():
            sys.stdout.buffer.write(as_json(line, file.program) + b"\n")
    sys.stdout.buffer.flush()
