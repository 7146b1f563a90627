"""Logs of every program: loguru, as text for people or one JSON object per line.

A line is a fixed sentence plus fields. Never a transcript, a prompt, a token or a key; what a
library says is let through from WARNING up, and whatever looks like a token is cut out.
"""

import json
import logging
import re
import sys
import traceback
from typing import TYPE_CHECKING

from loguru import logger

from backend.common.settings import CommonSettings

if TYPE_CHECKING:
    from loguru import Message, Record

# LiveKit's and others' clients put JSON web tokens into error messages and addresses.
_TOKEN = re.compile(r"eyJ[\w-]{6,}(?:\.[\w-]*){0,2}")

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


def is_ours_or_serious(record: "Record") -> bool:
    """Let through what Greenroom logs, and what libraries warn of."""
    # Pipecat logs transcripts and prompts at DEBUG, and much else at INFO.
    # A program that python -m runs is __main__: the launcher's own lines would be missing.
    return (record["name"] or "").startswith(("backend", "tests", "__main__")) or record["level"].no >= logging.WARNING


def as_json(record: "Record") -> str:
    """One line of JSON: time, level, message, then the bound fields."""
    fields = {name: value for name, value in record["extra"].items() if value not in ("", None)}
    line = {"time": record["time"].isoformat(), "level": record["level"].name, "message": record["message"], **fields}
    if record["exception"] is not None:
        line["exception"] = _stack(record)
    return redact(json.dumps(line, default=str))


def as_text(record: "Record") -> str:
    """One line for people: time, level, who, message, fields."""
    extra = record["extra"]
    who = " ".join(str(extra[name]) for name in _BOUND if extra.get(name) and name != "host_id")
    fields = " ".join(f"{name}={value}" for name, value in extra.items() if name not in _BOUND)
    line = f"{record['time']:%H:%M:%S.%f} {record['level'].name:<7} {who}: {record['message']} {fields}".rstrip()
    # What a field holds may come from outside: it must not look like a line of its own.
    line = line.replace("\r", "\\r").replace("\n", "\\n")
    return redact(line if record["exception"] is None else f"{line}\n{_stack(record)}")


def _stack(record: "Record") -> str:
    exception = record["exception"]
    # Frames only: loguru's own rendering shows the values of variables, prompts among them.
    return "".join(traceback.format_exception(*exception)).rstrip() if exception else ""


def _write_json(message: "Message") -> None:
    _write(as_json(message.record))


def _write_text(message: "Message") -> None:
    _write(as_text(message.record))


def _write(line: str) -> None:
    # With its end, in one piece: agents share a pipe, and where output is unbuffered print() writes twice.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class _ToLoguru(logging.Handler):
    """Hands the standard library's records to loguru, under the library's name."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname if record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL") else "WARNING"
        logger.opt(exception=record.exc_info).bind(library=record.name).log(level, record.getMessage())
