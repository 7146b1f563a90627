"""The module ``sounddevice`` on a machine whose microphone hears a tone and whose loudspeaker remembers."""

import math
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

LEVEL = 8_000
played: list[float] = []
"""The loudest sample of each block that the loudspeaker was given."""


class _Stream:
    """Calls back once a block, as PortAudio does from a thread of its own."""

    def __init__(self, *, callback: Callable[..., None], samplerate: int, blocksize: int, **_: Any) -> None:
        self._callback, self._rate, self._size = callback, samplerate, blocksize
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to call back."""
        self._thread.start()

    def stop(self) -> None:
        """Call back no more."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()

    def close(self) -> None:
        """Nothing is open."""

    def _run(self) -> None:
        times = SimpleNamespace(currentTime=0.0, inputBufferAdcTime=0.0, outputBufferDacTime=0.0)
        due = time.monotonic()
        while not self._is_over.wait(max(0.0, due - time.monotonic())):
            due += self._size / self._rate
            self._block(times)

    def _block(self, times: SimpleNamespace) -> None:
        raise NotImplementedError


class InputStream(_Stream):
    """A microphone."""

    def _block(self, times: SimpleNamespace) -> None:
        tone = LEVEL * np.sin(2 * math.pi * 440 * np.arange(self._size) / self._rate)
        self._callback(tone.astype(np.int16).reshape(-1, 1), self._size, times, None)


class OutputStream(_Stream):
    """A loudspeaker."""

    def _block(self, times: SimpleNamespace) -> None:
        block = np.zeros((self._size, 1), np.int16)
        self._callback(block, self._size, times, None)
        played.append(float(np.abs(block).max()))
