"""The log of one session: a file of its own, and the last 100 lines in Redis (agent:{session}:logs)."""

import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING, TextIO

import redis.asyncio
from loguru import logger

from backend.common import keys, logs
from backend.common.settings import CommonSettings

if TYPE_CHECKING:
    from loguru import Message

KEPT_LINES = 100
KEPT_SECONDS = 7 * 24 * 3_600
MOST_BYTES = 4 * 2**20
"""Of a session's file: an agent that floods its log must not fill the disk. Later lines are in Redis only."""


class SessionLog:
    """Writes every line to ``LOG_DIR/<session>.log`` at once and to Redis with the next ``flush``.

    Made while the agent is warm: adding a sink costs 10 ms, which the claim does not have. Until ``begin``
    nothing is kept.
    """

    def __init__(self, settings: CommonSettings) -> None:
        self._log_dir = settings.log_dir
        self._render = logs.as_json if settings.log_format == "json" else logs.as_text
        self._unsent: deque[str] = deque(maxlen=KEPT_LINES)
        self._key = ""
        self._file: TextIO | None = None
        self._left = MOST_BYTES
        self._sink = logger.add(
            self._write, level=settings.log_level, filter=logs.is_ours_or_serious, format="{message}", catch=True
        )

    def begin(self, session_id: str) -> None:
        """From here on the lines are this session's. Without a place for its file the call goes on: Redis has them."""
        self._key = keys.session_logs(session_id)
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            # A log names callers' sessions: nobody but the owner reads it.
            descriptor = os.open(self._log_dir / f"{session_id}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._file = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
        except OSError as error:
            logger.warning("the session has no log file: check LOG_DIR", error=type(error).__name__)

    def _write(self, message: "Message") -> None:
        if not self._key:
            return
        line = self._render(message.record)
        self._unsent.append(line)
        if self._file and self._left > 0:
            self._left -= len(line)
            # A full disk: Redis has the line. Loguru would print the whole record, with what a library said.
            with contextlib.suppress(OSError):
                self._file.write(line + "\n")

    async def flush(self, client: redis.asyncio.Redis) -> None:
        """Send the new lines to Redis; raises redis.RedisError, and then keeps them for the next time."""
        lines = list(self._unsent)
        if not lines:
            return
        async with client.pipeline(transaction=False) as pipe:
            pipe.rpush(self._key, *lines)
            pipe.ltrim(self._key, -KEPT_LINES, -1)
            pipe.expire(self._key, KEPT_SECONDS)
            await pipe.execute()
        for _ in lines:
            if self._unsent:
                self._unsent.popleft()

    def close(self) -> None:
        """Keep no line after this one."""
        with contextlib.suppress(ValueError):  # whoever configured the logs anew has removed it
            logger.remove(self._sink)
        if self._file:
            with contextlib.suppress(OSError):  # as above: some of it may not be written yet
                self._file.close()
