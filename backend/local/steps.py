"""Run one slow step of the set-up: say so, and leave no process behind when it is interrupted."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

QUIET_SECONDS = 2.0
"""What is quicker is not worth a line."""

EVERY_SECONDS = 10.0
"""How often a step that takes long says that it is still at work."""

TAIL_LINES = 20
"""What of a failed command's output is shown: the end names the cause."""


class StepFailedError(Exception):
    """A command of the set-up failed; the message ends with the last lines of its output."""


_render: Callable[[str], str] = str


def say_as_json() -> None:
    """From here on say everything as JSON: standard output is then for programs."""
    global _render  # noqa: PLW0603  # one way of speaking per process
    _render = _as_json


def _as_json(line: str) -> str:
    return json.dumps({"program": "local", "message": line.strip()})


def say(line: str) -> None:
    """Print one line for the person who waits."""
    # A terminal that was closed must not keep us from stopping what runs.
    with suppress(OSError):
        print(_render(line), flush=True)  # noqa: T201  # this is a command line program's face


@contextmanager
def progress(what: str, about: str) -> Iterator[None]:
    """Say ``what`` is being done and ``about`` how long it takes, once it has taken two seconds, then now and again."""
    done = threading.Event()
    began = time.monotonic()

    def talk() -> None:
        pause, line = QUIET_SECONDS, f"{what} ({about}) ..."
        while not done.wait(pause):
            say(line)
            pause = EVERY_SECONDS
            line = f"{what} ... {time.monotonic() - began + pause:.0f} s"

    talker = threading.Thread(target=talk, daemon=True)
    talker.start()
    try:
        yield
    finally:
        done.set()
        talker.join()


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    about: str,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> None:
    """Run a command to its end, quietly unless it fails.

    It has a process group of its own, which is killed when this process is interrupted: compilers start compilers.

    Raises:
        StepFailedError: it could not be started, or ended with another code than 0.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output, progress(what, about):
        try:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StepFailedError(f"{what} failed: {error}") from error
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if code != 0:
            output.seek(0)
            tail = "".join(output.readlines()[-TAIL_LINES:])
            raise StepFailedError(f"{what} failed with code {code}:\n{tail.rstrip()}")


def stop_on_sigterm() -> None:
    """Let SIGTERM and a closed terminal end this process as Ctrl-C does: through its ``finally`` blocks."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
