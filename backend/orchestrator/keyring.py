"""The API keys, known by their hashes only: those of API_KEYS, and those of a file that may change at any time."""

import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from backend.common.door_settings import DoorSettings

LOOK_SECONDS = 1.0
"""How often the file is looked at, at most, and so how long a withdrawn key may still open."""
_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_-]{0,31})=(\S{16,})")
"""A key of 16 characters or more behind a name. What is shorter is a plain key that holds an equals sign."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key; the key itself is not kept."""

    digest: str
    """SHA-256, hex."""
    name: str = ""

    @property
    def scope(self) -> str:
        """What stands for the key in Redis: the beginning of its hash."""
        return self.digest[:12]

    def __str__(self) -> str:
        """How logs show it."""
        return f"{self.name}:{self.digest[:8]}" if self.name else self.digest[:8]


class Keyring:
    """All keys that open now."""

    def __init__(self, settings: DoorSettings) -> None:
        self._fixed = [read_key(key.get_secret_value()) for key in settings.api_keys]
        self._file = settings.api_keys_file
        self._from_file: list[ApiKey] = []
        self._stamp: tuple[int, ...] = ()
        self._is_lost = False
        self._next_look = 0.0
        self._look()

    def find(self, shown: str) -> ApiKey | None:
        """The key that was shown, if it is one of ours."""
        self._look()
        digest = _digest(shown)
        # Every key is compared, each in constant time: the time tells neither which nor how much matched.
        known = [key for key in (*self._fixed, *self._from_file) if hmac.compare_digest(digest, key.digest)]
        return known[0] if known else None

    def _look(self) -> None:
        if self._file is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            self._read(self._file)
        except (OSError, UnicodeDecodeError) as error:  # it may come back; nobody new gets in meanwhile
            if not self._is_lost:
                logger.error("API_KEYS_FILE cannot be read: its last keys stay", error=type(error).__name__)
            self._is_lost = True

    def _read(self, file: Path) -> None:
        status = file.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp and not self._is_lost:
            return
        lines = (line.strip() for line in file.read_text().splitlines())
        self._from_file = [read_key(line) for line in lines if line and not line.startswith("#")]
        self._stamp, self._is_lost = stamp, False
        logger.info("API_KEYS_FILE was read", keys=[str(key) for key in self._from_file])


def read_key(text: str) -> ApiKey:
    """Read ``name=key``, or a key without a name."""
    named = _NAMED.fullmatch(text)
    return ApiKey(name=named[1], digest=_digest(named[2])) if named else ApiKey(digest=_digest(text))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
