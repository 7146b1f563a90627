"""The microphone reaches the room and the room reaches the loudspeaker, by LiveKit's own helpers."""

import sys

import pytest

from backend.caller.devices import Devices
from backend.caller.hearing import LOUD
from backend.caller.participant import Participant
from tests.fakes import fake_sounddevice
from tests.fakes.fake_caller import FakeCaller
from tests.livekit_server import LiveKitServer
from tests.waiting import wait_until_async


async def test_a_caller_speaks_by_the_microphone_and_hears_by_the_loudspeaker(
    livekit: LiveKitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice)
    fake_sounddevice.played.clear()
    room = await livekit.create_room()
    async with FakeCaller() as other:
        await other.join(livekit.url, livekit.token(room, "other"))
        async with Participant(devices=Devices()) as caller:
            await caller.join(livekit.url, livekit.token(room, "caller"))
            await other.sound()
            assert caller.spoken_loudness > LOUD
            await other.say("hello")
            await wait_until_async(lambda: any(level > LOUD for level in fake_sounddevice.played), what="it is played")
