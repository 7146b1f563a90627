"""Logs of every program: loguru, as text for people or one JSON object per line.

A line is a fixed sentence plus fields. Never a transcript, a prompt, a token or a key: of what a
library says from WARNING up only the place is logged, of an exception only its kind and frames,
because both may quote the call; and whatever looks like a token is cut out.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from loguru import logger

from backend.common.settings import CommonSettings

if TYPE_CHECKING:
    from loguru import Message, Record

# LiveKit's and others' clients put JSON web tokens into error messages and addresses.
_TOKEN = re.compile(r"eyJ[\w-]{6,}(?:\.[\w-]*){0,2}")

_OURS = ("backend", "tests", "__main__")
"""A program that python -m runs is __main__: the launcher's own lines would be missing."""
_DEAF = ("celery", "kombu", "uvicorn")
"""Libraries whose sentences are logged: no prompt and no word of a call passes through what they say."""
_FOREIGN = "a library complains"
_DEEPEST = 10
"""Exceptions of one stack that are shown: each may have a cause, a group has many."""

_BOUND = ("program", "host_id", "agent_id", "session_id")


def redact(text: str) -> str:
    """Cut out whatever looks like a JSON web token."""
    return _TOKEN.sub("<token>", text)


def configure(settings: CommonSettings, *, program: str) -> None:
    """Send this process' logs, and its libraries', to standard error. Call once, after a fork again."""
    logger.remove()
    logger.configure(extra={"program": program, "host_id": settings.host_id})
    write = _write_json if settings.log_format == "json" else _write_text
    logger.add(write, level=settings.log_level, filter=is_ours_or_serious, format="{message}", catch=True)
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)  # pydantic's quote values


def is_ours_or_serious(record: "Record") -> bool:
    """Let through what Greenroom logs, and what libraries warn of."""
    # Pipecat logs transcripts and prompts at DEBUG, and much else at INFO.
    return _is_of(record, _OURS) or record["level"].no >= logging.WARNING


def as_json(record: "Record") -> str:
    """One line of JSON: time, level, message, then the bound fields."""
    sentence, fields = _said(record)
    fields = {name: value for name, value in fields.items() if value not in ("", None)}
    line = {"time": record["time"].isoformat(), "level": record["level"].name, "message": sentence, **fields}
    if record["exception"] is not None:
        line["exception"] = _stack(record["exception"].value)
    return redact(json.dumps(line, default=str))


def as_text(record: "Record") -> str:
    """One line for people: time, level, who, message, fields."""
    sentence, extra = _said(record)
    who = " ".join(str(extra[name]) for name in _BOUND if extra.get(name) and name != "host_id")
    fields = " ".join(f"{name}={value}" for name, value in extra.items() if name not in _BOUND)
    line = f"{record['time']:%H:%M:%S.%f} {record['level'].name:<7} {who}: {sentence} {fields}".rstrip()
    # What a field holds may come from outside: it must not look like a line of its own.
    line = line.replace("\r", "\\r").replace("\n", "\\n")
    return redact(line if record["exception"] is None else f"{line}\n{_stack(record['exception'].value)}")


def _said(record: "Record") -> tuple[str, dict[str, Any]]:
    """The sentence and the fields; of a library's both are ours, and say where it spoke."""
    if _is_of(record, _OURS):
        return record["message"], record["extra"]
    bound = {name: value for name, value in record["extra"].items() if name in _BOUND}
    sentence = record["message"] if _is_of(record, _DEAF) else _FOREIGN
    return sentence, {**bound, "where": f"{record['name']}:{record['line']}"}


def _is_of(record: "Record", packages: tuple[str, ...]) -> bool:
    return (record["name"] or "").partition(".")[0] in packages


def _stack(error: BaseException | None) -> str:
    """The frames and kinds of an exception and of what led to it: a message, or a variable, may quote the call."""
    return "\n".join(_frames(error, set())) if error else ""


def _frames(error: BaseException, seen: set[int]) -> Iterator[str]:
    if id(error) in seen or len(seen) == _DEEPEST:
        return
    seen.add(id(error))
    if before := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        yield from _frames(before, seen)
        yield "which led to:"
    frames = traceback.format_tb(error.__traceback__)
    yield "".join(["Traceback (most recent call last):\n", *frames, type(error).__qualname__])
    for member in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield "one of its members:"
        yield from _frames(member, seen)


def _write_json(message: "Message") -> None:
    _write(as_json(message.record))


def _write_text(message: "Message") -> None:
    _write(as_text(message.record))


def _write(line: str) -> None:
    # With its end, in one piece: agents share a pipe, and where output is unbuffered print() writes twice.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class _ToLoguru(logging.Handler):
    """Hands the standard library's records to loguru, under the library's name and from its line."""

    def emit(self, record: logging.LogRecord) -> None:
        def place(taken: "Record") -> None:
            # A logger may be named after a package: then its file says more.
            is_whole = record.name.endswith(record.module)
            taken["name"] = record.name if is_whole else f"{record.name}.{record.module}"
            taken["line"] = record.lineno

        level = record.levelname if record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL") else "WARNING"
        logger.opt(exception=record.exc_info).patch(place).log(level, record.getMessage())
