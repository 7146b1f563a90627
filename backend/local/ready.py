"""Wait until a call can be started, and say meanwhile what is missing."""

import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from backend.local.steps import EVERY_SECONDS, QUIET_SECONDS, TAIL_LINES, StepFailedError, say
from backend.local.supervision import Supervisor

POLL_SECONDS = 0.1

TAIL_AFTER_SECONDS = 20.0
"""From here on it is no longer a slow start: the logs are shown."""

GIVE_UP_SECONDS = 180.0
"""A small machine that loads the models from a cold disk has been seen to take a third of this."""

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
        StepFailedError: supervisord ended or gave a program up, or it took too long.
    """
    began = time.monotonic()
    say_again_at, tail_is_due = QUIET_SECONDS, True
    while not stopping.wait(POLL_SECONDS):
        components = missing_components(address)
        if components is None:
            return
        if supervised.has_ended:
            raise StepFailedError(f"supervisord ended: {supervised.last_words() or 'see ' + str(logs)}")
        missing = Missing(programs=_not_running(supervised), components=components)
        elapsed = time.monotonic() - began
        if "FATAL" in missing.programs.values() or elapsed > GIVE_UP_SECONDS:
            raise StepFailedError(
                f"Gave up after {elapsed:.0f} s, waiting for {missing}.\n{tails(logs, missing.culprits)}"
            )
        if elapsed >= say_again_at:
            say(f"waiting for {missing} ... {elapsed:.0f} s")
            say_again_at = elapsed + EVERY_SECONDS
        if tail_is_due and elapsed > TAIL_AFTER_SECONDS:
            say(tails(logs, missing.culprits))
            tail_is_due = False


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


def tails(logs: Path, programs: list[str]) -> str:
    """Return the last lines of these programs' logs."""
    return "\n".join(f"--- {logs / program}.log\n{_tail(logs / f'{program}.log')}" for program in programs)


def _not_running(supervised: Supervisor) -> dict[str, str]:
    return {name: state for name, state in supervised.states().items() if state != "RUNNING"}


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
