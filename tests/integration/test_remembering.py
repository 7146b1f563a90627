"""A voice that knows its opening line asks no vendor for it, and sounds as if it had."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from pipecat.frames.frames import (
    Frame,
    InterruptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)

from backend.agent import voices
from backend.agent.voices import Voice, demo, inworld
from backend.common.settings import LauncherSettings
from tests.fakes.fake_vendors import FakeVendors
from tests.running_service import RunningService, briefing, facts, running_service, settings
from tests.waiting import wait_until_async

LINE = "Good morning, and welcome to the greenhouse!"
KINDS = (TTSStartedFrame, TTSAudioRawFrame, TTSTextFrame, TTSStoppedFrame)


@pytest.fixture
async def vendors() -> AsyncIterator[FakeVendors]:
    async with FakeVendors() as vendors:
        yield vendors


@pytest.fixture
def chosen(vendors: FakeVendors, tmp_path: Path) -> LauncherSettings:
    """Vendors, and an operator who says that Inworld's terms allow it."""
    keys = dict.fromkeys(("assembly_api_key", "groq_api_key", "inworld_api_key"), "a-key")
    urls = {name: getattr(vendors, name) for name in ("assembly_url", "groq_url", "inworld_url")}
    return settings(**keys, **urls, run_dir=tmp_path, opening_line_cache_mb=1, opening_line_cache_for=("inworld",))


def kept(chosen: LauncherSettings) -> list[Path]:
    return sorted((chosen.host_dir / "opening-lines").glob("[!.]*"))


def voice_of(chosen: LauncherSettings, **session: object) -> Voice:
    voice = voices.make(chosen, briefing(**{"opening_line": LINE, **session}), facts())
    voice.heard.set()
    return voice


def changed(chosen: LauncherSettings, **changes: object) -> LauncherSettings:
    return chosen.model_copy(update=changes)


def texts(vendors: FakeVendors) -> list[str]:
    """What the vendor was asked to say."""
    return [seen.body["send_text"]["text"].strip() for seen in vendors.seen("tts") if "send_text" in seen.body]


def messages(vendors: FakeVendors) -> int:
    """How many messages the vendor got after the connections were made."""
    return sum(not seen.headers for seen in vendors.seen("tts"))


async def greeted(voice: Voice) -> list[Frame]:
    """Let it say its first words; returns what came out of it, until it was silent."""
    async with running_service(voice.speak) as service:
        await service.send(TTSSpeakFrame(voice.first_words))
        await service.got(TTSStoppedFrame)
        return [frame for frame in service.all(Frame) if isinstance(frame, KINDS)]


async def greeted_and_kept(chosen: LauncherSettings, **session: object) -> list[Frame]:
    """The same, and wait until it is on disk."""
    before = len(kept(chosen))
    frames = await greeted(voice_of(chosen, **session))
    await wait_until_async(lambda: len(kept(chosen)) > before, what="the line is kept")
    return frames


def sound(frames: list[Frame]) -> bytes:
    return b"".join(frame.audio for frame in frames if isinstance(frame, TTSAudioRawFrame))


def words(frames: list[Frame]) -> list[TTSTextFrame]:
    return [frame for frame in frames if isinstance(frame, TTSTextFrame)]


def times_ms(frames: list[Frame]) -> list[float]:
    """When each word is spoken, from the first one on."""
    times = [frame.pts or 0 for frame in words(frames)]
    return [(at - times[0]) / 1e6 for at in times]


async def test_the_second_time_nobody_is_asked_and_the_same_is_heard(
    chosen: LauncherSettings, vendors: FakeVendors
) -> None:
    first = await greeted_and_kept(chosen)
    assert texts(vendors) == [LINE]
    asked = messages(vendors)
    second = await greeted(voice_of(chosen))
    assert messages(vendors) == asked, "nothing at all is sent, not even that a line begins or ends"
    assert len(sound(first)) > 48_000, "more than a second"
    assert sound(second) == sound(first)
    assert [frame.text for frame in words(second)] == LINE.split()
    assert times_ms(second) == pytest.approx(times_ms(first), abs=1)
    assert isinstance(second[0], TTSStartedFrame)
    assert isinstance(second[-1], TTSStoppedFrame)


async def test_the_demo_voice_remembers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(run_dir=tmp_path, opening_line_cache_mb=1)
    first = await greeted_and_kept(chosen)

    async def ask(*_: object, **__: object) -> None:
        raise AssertionError("it was asked")

    voice = voice_of(chosen)
    assert isinstance(voice.speak, demo.DemoVoice)
    monkeypatch.setattr(voice.speak.process, "ask", ask)
    second = await greeted(voice)
    assert sound(second) == sound(first)
    assert [frame.text for frame in words(second)] == LINE.split()


@pytest.mark.parametrize("session", [{"voice_id": "Craig"}, {"opening_line": f"{LINE} "}, {"has_begun": True}], ids=str)
async def test_another_voice_or_another_line_is_asked_for(
    chosen: LauncherSettings, vendors: FakeVendors, session: dict[str, object]
) -> None:
    await greeted_and_kept(chosen)
    await greeted_and_kept(chosen, **session)
    assert len(texts(vendors)) == 2


@pytest.mark.parametrize(("name", "value"), [("MODEL", "inworld-tts-3"), ("TEMPERATURE", 0.5), ("DEFAULT_SPEED", 1.3)])
async def test_another_model_temperature_or_speed_is_asked_for(
    chosen: LauncherSettings, vendors: FakeVendors, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    await greeted_and_kept(chosen, voice_id="Somebody")
    monkeypatch.setattr(inworld, name, value)
    await greeted_and_kept(chosen, voice_id="Somebody")
    assert len(texts(vendors)) == 2


async def test_another_account_has_lines_of_its_own(chosen: LauncherSettings, vendors: FakeVendors) -> None:
    await greeted_and_kept(chosen)
    await greeted_and_kept(settings(**{**vars(chosen), "inworld_api_key": "another"}))
    assert len(texts(vendors)) == 2


@pytest.mark.parametrize("changes", [{"opening_line_cache_mb": 0}, {"opening_line_cache_for": ()}], ids=str)
async def test_nothing_is_kept_where_it_is_not_allowed(
    chosen: LauncherSettings, vendors: FakeVendors, changes: dict[str, object]
) -> None:
    await greeted_and_kept(chosen)
    for _ in range(2):
        await greeted(voice_of(changed(chosen, **changes), opening_line="Another line."))
    assert len(texts(vendors)) == 3
    assert len(kept(chosen)) == 1


async def test_only_the_opening_line_is_kept(chosen: LauncherSettings, vendors: FakeVendors) -> None:
    async with running_service(voice_of(chosen).speak) as service:
        await service.send(TTSSpeakFrame("Something else."), TTSSpeakFrame(LINE))
        await wait_until_async(lambda: len(service.all(TTSStoppedFrame)) == 2, what="both are spoken")
        await wait_until_async(lambda: kept(chosen), what="the line is kept")
    assert len(kept(chosen)) == 1
    await greeted(voice_of(chosen))
    assert texts(vendors) == ["Something else.", LINE]


async def test_what_is_kept_cannot_be_read_as_text(chosen: LauncherSettings) -> None:
    await greeted_and_kept(chosen)
    (path,) = kept(chosen)
    assert len(path.name) == 64
    assert set(path.name) <= set("0123456789abcdef")
    content = path.read_bytes()
    assert not [word for word in LINE.split() if word.strip(",!").encode() in content and len(word) > 4]


async def interrupt(service: RunningService, _: FakeVendors) -> None:
    await service.send(InterruptionFrame())


async def cut_the_line(_: RunningService, vendors: FakeVendors) -> None:
    vendors.drop("tts")


async def fall_silent(service: RunningService, _: FakeVendors) -> None:
    del service  # the voice gives up on it by itself, after 3 s


@pytest.mark.parametrize("end", [interrupt, cut_the_line, fall_silent])
async def test_half_a_line_is_not_kept(
    chosen: LauncherSettings, vendors: FakeVendors, end: Callable[[RunningService, FakeVendors], Awaitable[None]]
) -> None:
    vendors.fault("tts", "half")
    voice = voice_of(chosen)
    async with running_service(voice.speak) as service:
        await service.send(TTSSpeakFrame(LINE))
        await service.got(TTSAudioRawFrame)
        await end(service, vendors)
        await wait_until_async(lambda: not voice.speak.get_audio_contexts(), what="the line is over")
        vendors.fault("tts", "")
        await asyncio.sleep(0.2)  # a file would be written in a few milliseconds
    assert not kept(chosen)


async def test_a_damaged_file_is_spoken_anew_and_kept_again(chosen: LauncherSettings, vendors: FakeVendors) -> None:
    first = await greeted_and_kept(chosen)
    (path,) = kept(chosen)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert sound(await greeted(voice_of(chosen))) == sound(first)
    assert texts(vendors) == [LINE, LINE]
    await wait_until_async(lambda: path.exists() and path.read_bytes() == whole, what="it is whole again")


async def test_a_line_from_memory_waits_until_it_can_be_heard_and_is_cut_like_any_other(
    chosen: LauncherSettings,
) -> None:
    await greeted_and_kept(chosen)
    voice = voice_of(chosen)
    voice.heard.clear()
    async with running_service(voice.speak) as service:
        await service.send(TTSSpeakFrame(LINE))
        await service.got(TTSStartedFrame)
        await asyncio.sleep(0.1)  # a voice that did not wait would have spoken by then
        assert not service.all(TTSAudioRawFrame)
        await service.send(InterruptionFrame())
        await wait_until_async(lambda: not voice.speak.get_audio_contexts(), what="it is cut")
        voice.heard.set()
        await service.send(TTSSpeakFrame("Next."))
        await service.got(TTSStoppedFrame)
        assert [frame.text for frame in service.all(TTSTextFrame)] == ["Next."]
