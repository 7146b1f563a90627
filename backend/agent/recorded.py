"""What a client recorded, as samples: raw ones, or a browser's WebM with Opus in it.

MediaRecorder's WebM is a stream without lengths or an index, one Opus packet to a block. The decoder
at hand, libsndfile's, reads Opus from Ogg only: so the packets move from one container to the other.
"""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr

OPUS_RATE = 48_000
"""Whatever was recorded: Opus counts in these."""

_UNKNOWN = -1
# Elements that hold others; everything else is read as a whole, or passed over.
_SEGMENT, _CLUSTER, _TRACKS, _TRACK, _GROUP = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xA0
_HOLDERS = {_SEGMENT, _CLUSTER, _TRACKS, _TRACK, _GROUP}
_OPUS_HEAD, _BLOCK, _SIMPLE_BLOCK = 0x63A2, 0xA1, 0xA3


def samples(recorded: bytes, mime_type: str, rate: int, *, wanted_rate: int) -> bytes:
    """Give 16-bit samples of one channel; ``rate`` is that of raw ones.

    Raises:
        ValueError: the format is not known, or the recording does not hold to it.
    """
    if "webm" in mime_type and "opus" in mime_type:
        sound, rate = _decoded(recorded), OPUS_RATE
    elif mime_type in ("", "application/octet-stream", "audio/pcm") and 8_000 <= rate <= OPUS_RATE:
        sound = np.frombuffer(recorded[: len(recorded) // 2 * 2], np.int16)
    else:
        raise ValueError("a format that is not known")
    return bytes(soxr.resample(sound, rate, wanted_rate).astype(np.int16).tobytes())


def _decoded(webm: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.int16]]":
    try:
        sound, _ = soundfile.read(io.BytesIO(_ogg(*_opus(webm))), dtype="int16", always_2d=True)
    except (IndexError, struct.error, soundfile.LibsndfileError) as error:
        raise ValueError("not the format that it says") from error
    channel: np.ndarray[tuple[int, ...], np.dtype[np.int16]] = sound[:, 0]
    return channel


def _opus(webm: bytes) -> tuple[bytes, list[bytes]]:
    """Find Opus' own header and its packets."""
    head, packets = b"", []
    for kind, content in _elements(webm):
        if kind == _OPUS_HEAD:
            head = content
        elif kind in (_BLOCK, _SIMPLE_BLOCK) and len(content) > 4:
            packets.append(content[4:])  # after the track's number, the time and the flags
    if not head or not packets:
        raise ValueError("no Opus in it")
    return head, packets


def _elements(webm: bytes) -> Iterator[tuple[int, bytes]]:
    """Walk through the elements that hold no others; what was cut at the end is left out."""
    place = 0
    while place < len(webm):
        try:
            kind, place = _number(webm, place, keeps_mark=True)
            size, place = _number(webm, place)
        except IndexError:  # cut between the two: a recording ends where it is stopped
            return
        if kind in _HOLDERS:
            continue  # into it
        if size == _UNKNOWN or place + size > len(webm):
            return
        yield kind, webm[place : place + size]
        place += size


def _number(webm: bytes, place: int, *, keeps_mark: bool = False) -> tuple[int, int]:
    """Read a number whose first byte says how long it is; returns it and what follows."""
    length = 9 - webm[place].bit_length()
    if length > 8:
        raise ValueError("no length")
    number = int.from_bytes(webm[place : place + length], "big")
    mark = 1 << (7 * length)
    if keeps_mark:
        return number, place + length
    return _UNKNOWN if number == 2 * mark - 1 else number - mark, place + length


def _ogg(head: bytes, packets: Iterable[bytes]) -> bytes:
    tags = b"OpusTags" + struct.pack("<I", 0) + struct.pack("<I", 0)
    pages = [_page(head, 0, 0, flags=2), _page(tags, 0, 1)]
    position = 0
    for number, packet in enumerate(packets, start=2):
        position += _duration(packet)
        pages.append(_page(packet, position, number))
    return b"".join(pages)


def _duration(packet: bytes) -> int:
    """How many samples are in a packet, by RFC 6716, section 3."""
    configuration, code = packet[0] >> 3, packet[0] & 3
    if configuration < 12:
        frame = (480, 960, 1920, 2880)[configuration % 4]
    elif configuration < 16:
        frame = (480, 960)[configuration % 2]
    else:
        frame = (120, 240, 480, 960)[configuration % 4]
    return frame * (packet[1] & 0x3F if code == 3 else (1, 2, 2)[code])


def _page(packet: bytes, position: int, number: int, *, flags: int = 0) -> bytes:
    sizes = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
    header = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, position, 1, number, 0, len(sizes)) + sizes
    page = header + packet
    return page[:22] + struct.pack("<I", _checksum(page)) + page[26:]


def _checksum(page: bytes) -> int:
    """Ogg's CRC is zlib's with every bit the other way round, and nothing to begin or end with."""
    mirrored = zlib.crc32(page.translate(_MIRROR), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRROR), "big")


_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
