"""Opening lines that were spoken before: their sound on disk, by a hash of all that it depends on.

``<host folder>/opening-lines/<key>``, one file per line, owner only: a mark, the SHA-256 of what follows, the length
of the header, the header (JSON), the samples. Nothing in it or in its name can be read as text: the words are places in
the line, of use only to whoever has the line. All agents of a host share the folder, and none ever waits for another.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

_MARK = b"GRLINE1\n"
"""Changes with the format: what an older version kept is then a miss."""
_DIGEST_BYTES = 32
_LENGTH_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Word:
    """One spoken word, as a place in the line that it is a word of."""

    first: int
    """Its first character."""
    length: int
    at_ms: int
    """When it is spoken, from the beginning of the sound."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """A whole line as it was spoken."""

    sound: bytes = field(repr=False)
    """16-bit samples of one channel."""
    rate: int
    words: tuple[Word, ...]


class OpeningLines:
    """The folder of one host. No fault of a disk is ever the caller's: it is logged, and the line is spoken anew."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes

    def find(self, key: str) -> Speech | None:
        """Read a line and note that it was used; None when it is not there. A damaged file is removed."""
        path = self._folder / key
        try:
            packed = path.read_bytes()
            speech = _unpacked(packed)
            if speech is None:
                logger.warning("a kept opening line was damaged, and is removed")
                path.unlink()
            else:
                with suppress(OSError):  # then it goes sooner than it should
                    os.utime(path)
        except FileNotFoundError:  # or another agent was quicker to remove it
            return None
        except OSError as error:
            logger.warning("a kept opening line cannot be read", error=type(error).__name__)
            return None
        return speech

    def keep(self, key: str, speech: Speech) -> None:
        """Write a line, in the place of those that were not used for longest; not at all while another agent writes."""
        packed = _packed(speech)
        if len(packed) > self._most_bytes:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._alone() as is_alone:
                if is_alone:
                    self._make_room(len(packed))
                    self._write(key, packed)
        except OSError as error:
            logger.warning("an opening line cannot be kept", error=type(error).__name__)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Take the folder's lock, if it is free; a process that dies gives it back."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False  # a later call keeps it
        else:
            yield True
        finally:
            os.close(descriptor)

    def _make_room(self, wanted_bytes: int) -> None:
        kept = []
        for entry in os.scandir(self._folder):
            if entry.name.startswith("."):  # half a file, of an agent that died while it wrote
                Path(entry).unlink()
            else:
                status = entry.stat()
                kept.append((status.st_mtime_ns, status.st_size, entry.path))
        excess = sum(size for _, size, _ in kept) + wanted_bytes - self._most_bytes
        for _, size, path in sorted(kept):
            if excess <= 0:
                return
            Path(path).unlink(missing_ok=True)
            excess -= size

    def _write(self, key: str, packed: bytes) -> None:
        fresh = self._folder / f".{key}"
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(packed)
            fresh.replace(self._folder / key)
        except OSError:
            fresh.unlink(missing_ok=True)  # a full disk must not be left fuller
            raise


def _packed(speech: Speech) -> bytes:
    words = [[word.first, word.length, word.at_ms] for word in speech.words]
    header = json.dumps({"rate": speech.rate, "words": words}, separators=(",", ":")).encode()
    body = len(header).to_bytes(_LENGTH_BYTES, "big") + header + speech.sound
    return _MARK + hashlib.sha256(body).digest() + body


def _unpacked(packed: bytes) -> Speech | None:
    start = len(_MARK) + _DIGEST_BYTES
    digest, body = packed[len(_MARK) : start], packed[start:]
    if not packed.startswith(_MARK) or hashlib.sha256(body).digest() != digest:
        return None
    end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big")
    header = json.loads(body[_LENGTH_BYTES:end])
    words = tuple(Word(first=first, length=length, at_ms=at_ms) for first, length, at_ms in header["words"])
    return Speech(sound=body[end:], rate=header["rate"], words=words)
