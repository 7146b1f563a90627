"""The two ends of the voice without keys: run as a process of its own, ``speak`` or ``hear``, on stdin and stdout.

A message is one line of JSON, whose field ``bytes`` says how much 16-bit mono sound follows:

    speak   {"text", "voice", "pitch", "words_per_minute"}  ->  {"rate"} and the sound
    hear    {} and the sound at 16 kHz                      ->  {"question"}; null: none of those it was started with

A process of its own, because espeak-ng is GPL-3, and because pocketsphinx holds the interpreter
lock, which would stall an agent's loop. It imports nothing of Greenroom, gets its library's folder
as an argument (``python -I -S`` starts in 10 ms), and ends at the end of its input, so it cannot
outlive its agent.
"""

import ctypes
import itertools
import json
import math
import os
import random
import signal
import sys
from array import array
from collections.abc import Callable
from typing import Any, BinaryIO

Message = dict[str, Any]
Answer = Callable[[Message, bytes], tuple[Message, bytes]]

HEARING_RATE = 16_000
_FRAME = HEARING_RATE // 100
"""Samples of one of pocketsphinx' frames, 10 ms."""

# espeak-ng/speak_lib.h
_SYNCHRONOUS, _UTF8, _RATE, _PITCH = 2, 1, 1, 3
_ON_SOUND = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

# A closed grammar makes a question of anything that is said. Two signs give the wrong ones away:
# the words fit badly, or much of what was loud had to be called silence.
LEAST_FIT = -5.0
"""Least mean logarithm of the acoustic score per frame of the words."""
MOST_UNEXPLAINED = 0.1
"""Most loud frames outside the words, as a share of the frames in them."""
_LOUD = 0.06
"""A frame is loud from this share of the loudest one's peak."""
_MARGIN_FRAMES = 30
"""Silence kept before and after: the grammar wants some, more of it only blurs the score."""
_NOISE = 25
"""Standard deviation of the noise that is added: in digital silence the decoder loses its way (40 % heard, not 100)."""


def speaking() -> Answer:
    """Load espeak-ng and return what speaks a text."""
    import espeakng_loader  # noqa: PLC0415  # found only after its folder was added

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise RuntimeError("espeak-ng did not start")
    sound = bytearray()

    def keep(samples: Any, count: int, _events: int | None) -> int:
        if samples and count > 0:
            sound.extend(ctypes.string_at(samples, count * 2))
        return 0

    callback = _ON_SOUND(keep)
    library.espeak_SetSynthCallback(callback)

    # The default keeps the library's callback alive as long as this function.
    def speak(message: Message, _: bytes, _callback: Any = callback) -> tuple[Message, bytes]:
        sound.clear()
        if library.espeak_SetVoiceByName(message["voice"].encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {message['voice']}")
        library.espeak_SetParameter(_RATE, message["words_per_minute"], 0)
        library.espeak_SetParameter(_PITCH, message["pitch"], 0)
        text = message["text"].encode()
        library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        return {"rate": rate}, bytes(sound)

    return speak


def hearing(questions: list[str]) -> Answer:
    """Load pocketsphinx with a grammar of these questions and return what tells which of them was asked."""
    import pocketsphinx  # noqa: PLC0415  # found only after its folder was added

    decoder = pocketsphinx.Decoder(lm=None, samprate=HEARING_RATE, logfn=os.devnull, loglevel="FATAL")
    decoder.add_jsgf_string("questions", f"#JSGF V1.0; grammar questions; public <one> = {' | '.join(questions)};")
    decoder.activate_search("questions")
    whole = set(questions)
    # Always the same, so that the same sound is always the same question.
    chance = random.Random(0)  # noqa: S311  # no secret
    noise = [round(chance.gauss(0, _NOISE)) for _ in range(HEARING_RATE)]

    def hear(_: Message, sound: bytes) -> tuple[Message, bytes]:
        samples, loud = trimmed(sound)
        if not any(loud):
            return {"question": None}, b""
        decoder.start_utt()
        decoder.process_raw(with_noise(samples, noise).tobytes(), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        # Part of a question: the speech ended in its middle.
        is_meant = best is not None and best.hypstr in whole and fits(list(decoder.seg()), loud)
        return {"question": best.hypstr if is_meant else None}, b""

    return hear


def trimmed(sound: bytes) -> tuple["array[int]", list[bool]]:
    """Cut the silence before and after; return the samples and, for each frame, whether it is loud."""
    samples = array("h", sound[: len(sound) // (2 * _FRAME) * 2 * _FRAME])
    frames = (samples[start : start + _FRAME] for start in range(0, len(samples), _FRAME))
    peaks = [max(-min(frame), *frame) for frame in frames]
    least = max(peaks, default=0) * _LOUD
    loud = [peak > least for peak in peaks]
    if not any(loud):
        return array("h"), []
    first = max(0, loud.index(True) - _MARGIN_FRAMES)
    last = min(len(loud), len(loud) - loud[::-1].index(True) + _MARGIN_FRAMES)
    return samples[first * _FRAME : last * _FRAME], loud[first:last]


def with_noise(samples: "array[int]", noise: list[int]) -> "array[int]":
    """Add the noise, over and over; what is too loud is cut."""
    return array(
        "h", (max(-32768, min(32767, sum(pair))) for pair in zip(samples, itertools.cycle(noise), strict=False))
    )


def fits(segments: list[Any], loud: list[bool]) -> bool:
    """Whether the words that were found explain what was said."""
    words = [segment for segment in segments if not segment.word.startswith("<")]
    silences = [segment for segment in segments if segment.word.startswith("<")]
    spoken_frames: int = sum(word.end_frame - word.start_frame + 1 for word in words)
    fit: float = sum(math.log(max(word.ascore, sys.float_info.min)) for word in words) / spoken_frames
    unexplained = sum(sum(loud[silence.start_frame : silence.end_frame + 1]) for silence in silences) / spoken_frames
    return fit >= LEAST_FIT and unexplained <= MOST_UNEXPLAINED


def read(stream: BinaryIO) -> tuple[Message, bytes] | None:
    """Read one message and its sound; None at the end of the input."""
    line = stream.readline()
    if not line:
        return None
    message: Message = json.loads(line)
    return message, stream.read(message["bytes"])


def write(stream: BinaryIO, message: Message, sound: bytes) -> None:
    """Write one message and its sound."""
    stream.write(json.dumps({**message, "bytes": len(sound)}).encode() + b"\n" + sound)
    stream.flush()


def main(what: str, library_folder: str, questions: str) -> None:
    """Answer every message until the input ends; ``questions`` is a JSON list."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's affair
    # What a library prints must not get between the messages.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path.insert(0, library_folder)
    answer = speaking() if what == "speak" else hearing(json.loads(questions))
    while (received := read(sys.stdin.buffer)) is not None:
        write(output, *answer(*received))


if __name__ == "__main__":
    main(*sys.argv[1:])
