"""A caller's speech, by espeak-ng in a process of its own: ``say(text, rate)`` gives 16-bit mono sound."""

import ctypes
import subprocess
import sys
from functools import cache

import espeakng_loader
import numpy as np
import soxr

WORDS_PER_MINUTE = 160
_SYNCHRONOUS, _UTF8, _RATE = 2, 1, 1  # espeak_ng/speak_lib.h
_ON_SOUND = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@cache
def say(text: str, rate: int) -> bytes:
    """Speak a text; the same text always sounds the same."""
    said = subprocess.run([sys.executable, __file__, text], capture_output=True, check=True).stdout
    native_rate, _, sound = said.partition(b"\n")
    resampled = soxr.resample(np.frombuffer(sound, np.int16), int(native_rate), rate)
    return bytes(resampled.astype(np.int16).tobytes())


def main(text: str) -> None:
    """Write the voice's sample rate, a line's end and the sound."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    native_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    sound = bytearray()

    def keep(samples: object, count: int, _: int | None) -> int:
        if samples and count > 0:
            sound.extend(ctypes.string_at(samples, count * 2))  # type: ignore[arg-type]  # a pointer
        return 0

    on_sound = _ON_SOUND(keep)
    library.espeak_SetSynthCallback(on_sound)
    library.espeak_SetVoiceByName(b"en-us")
    library.espeak_SetParameter(_RATE, WORDS_PER_MINUTE, 0)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _UTF8, None, None)
    sys.stdout.buffer.write(f"{native_rate}\n".encode() + sound)


if __name__ == "__main__":
    main(sys.argv[1])
