"""Wait until a call can be started, and say meanwhile what is missing."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from backend.local.steps import EVERY_SECONDS, QUIET_SECONDS, TAIL_LINES, StepFailedError, say
from backend.local.supervision import Program, Supervisor

POLL_SECONDS = 0.2

TAIL_AFTER_SECONDS = 20.0
"""From here on it is no longer a slow start: the logs are shown."""

GIVE_UP_SECONDS = 180.0
"""A small machine that loads the models from a cold disk has been seen to take a third of this."""

MOST_STARTS = 4
"""A program that was started more often than this in one start of the product will not do better the next time."""

ANSWER_SECONDS = 3.0
"""Longest wait for one answer of the API."""

BEHIND = {"redis": "redis", "broker": "worker", "livekit": "livekit", "hosts": "launcher"}
"""Whose log tells why a component of /health is missing."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Why no call can be started yet."""

    programs: dict[str, str]
    """Programs that are not running, and what they are instead."""
    components: tuple[str, ...]
    """What /health says is missing; () while the API does not answer."""

    def __str__(self) -> str:
        programs = [f"{name} ({state.lower()})" for name, state in self.programs.items()]
        components = [f"{name} (/health)" for name in self.components]
        return ", ".join(programs + components) or "the API's answer"

    @property
    def culprits(self) -> list[str]:
        """The programs whose logs are worth reading."""
        behind = [BEHIND.get(component, "api") for component in self.components]
        return list(dict.fromkeys([*self.programs, *behind])) or ["api"]


def wait_until_ready(address: str, supervised: Supervisor, *, logs: Path, stopping: threading.Event) -> None:
    """Return when ``address``/health answers 200, or when ``stopping`` is set.

    Raises:
        StepFailedError: supervisord ended, a program cannot be started, or it took too long.
    """
    began = time.monotonic()
    starts = Starts()
    say_again_at, tail_is_due = QUIET_SECONDS, True
    while not stopping.wait(POLL_SECONDS):
        components = missing_components(address)
        if components is None:
            return
        if supervised.has_ended:
            raise StepFailedError(f"supervisord ended: {supervised.last_words() or f'see {logs}'}")
        programs = supervised.programs()
        missing = Missing(programs=_not_running(programs), components=components)
        elapsed = time.monotonic() - began
        if starts.are_hopeless(programs) or elapsed > GIVE_UP_SECONDS:
            raise StepFailedError(f"Gave up after {elapsed:.0f} s of waiting for {missing}.\n{tails(logs, missing)}")
        if elapsed >= say_again_at:
            say(f"waiting for {missing} ... {elapsed:.0f} s")
            say_again_at = elapsed + EVERY_SECONDS
        if tail_is_due and elapsed > TAIL_AFTER_SECONDS:
            say(tails(logs, missing))
            tail_is_due = False


class Starts:
    """Counts how often each program was started."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()

    def are_hopeless(self, programs: list[Program]) -> bool:
        """Whether supervisord gave one up, or one ends again and again after it had seemed to run."""
        self._seen |= {(program.name, program.pid) for program in programs if program.pid}
        most = max(Counter(name for name, _ in self._seen).values(), default=0)
        return most > MOST_STARTS or any(program.state == "FATAL" for program in programs)


def missing_components(address: str) -> tuple[str, ...] | None:
    """Ask the API what is missing for a call: None when nothing is, () when it does not answer."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=ANSWER_SECONDS):  # noqa: S310  # our own address
            return None
    except urllib.error.HTTPError as refusal:
        with refusal:
            return _not_ok(refusal.read())
    except OSError:  # not listening yet
        return ()


def tails(logs: Path, missing: Missing) -> str:
    """Return the last lines of the logs that tell why."""
    paths = [logs / f"{program}.log" for program in missing.culprits]
    return "\n".join(f"--- {path}\n{_tail(path)}" for path in paths)


def _not_running(programs: list[Program]) -> dict[str, str]:
    return {program.name: program.state for program in programs if program.state != "RUNNING"}


def _not_ok(body: bytes) -> tuple[str, ...]:
    try:
        components = json.loads(body)["components"]
        return tuple(name for name, component in components.items() if component["state"] != "ok")
    except (ValueError, KeyError, TypeError):  # not our API's answer
        return ()


def _tail(log: Path) -> str:
    if not log.exists():
        return "(nothing yet)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:]) or "(nothing yet)"
