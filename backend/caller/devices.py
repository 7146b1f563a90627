"""This machine's microphone and loudspeaker, by LiveKit's own helpers, which take the echo out."""

import importlib

from livekit import rtc

from backend.caller.hearing import loudness


class NoDevicesError(Exception):
    """Raised when there is no microphone or loudspeaker, or no library to reach them."""


class Devices:
    """The default microphone and loudspeaker, open until ``close``. Raises: NoDevicesError"""

    def __init__(self) -> None:
        self.loudness = 0.0
        try:
            importlib.import_module("sounddevice")
            devices = rtc.MediaDevices()
            self._capture = devices.open_input()
            self._player = devices.open_output()
        except ImportError:
            raise NoDevicesError("the package sounddevice is not installed: pip install sounddevice") from None
        except Exception as error:  # PortAudio's errors have no common class: no library, no device, no permission
            how = "on Debian its library is libportaudio2; a machine without sound has --wav and --say"
            raise NoDevicesError(f"no microphone or loudspeaker: {error}; {how}") from None
        self._is_playing = False
        self.source = self._capture.source
        self._meter()

    async def play(self, track: rtc.Track) -> None:
        """Let a track be heard."""
        await self._player.add_track(track)
        if not self._is_playing:
            self._is_playing = True
            await self._player.start()

    async def close(self) -> None:
        """Let go of both."""
        await self._capture.aclose()
        await self._player.aclose()

    def _meter(self) -> None:
        capture = self.source.capture_frame

        async def measured(frame: rtc.AudioFrame) -> None:
            self.loudness = loudness(frame.data)
            await capture(frame)

        # The helper gives its frames to nobody but the source.
        self.source.capture_frame = measured  # type: ignore[method-assign]  # see above
