"""``greenroom call`` where no agent comes: against the real API, Valkey and LiveKit server."""

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

import pytest

from backend.caller.caller import Caller
from backend.caller.rest import Greenroom
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import RunningApi, host_is_seen, running_api
from tests.livekit_server import LiveKitServer
from tests.running_command import a_command, run_command
from tests.valkey_server import Valkey, free_port
from tests.waiting import wait_until_async

KEY = "a-key-that-nobody-guesses"


def address(api: RunningApi) -> str:
    return f"http://127.0.0.1:{api.settings.port}"


async def ended_by(api: RunningApi, said: dict[str, Any]) -> tuple[str, str]:
    shown = await api.show(said["sessionId"])
    return shown["status"], shown["endReason"]


async def test_a_call_without_an_agent_says_that_it_waits_and_ends_unheard(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey)
    ran = await run_command("call", "--url", address(api), "--patience", "1")
    assert ran.code == 5, ran
    assert "waiting in the line" in ran.output
    assert "the caller is in the room" in ran.output
    assert ran.output.splitlines()[-2:] == ["0 s, ended: client_end (client)", "unheard: nothing was heard within 1 s"]
    assert "\x1b" not in ran.output, "nothing for a terminal where there is none"


async def test_json_is_one_document_and_all_that_is_printed(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey)
    ran = await run_command("call", "--json", "--patience", "1", GREENROOM_URL=address(api))
    (said,) = ran.documents
    assert (ran.code, ran.errors) == (5, "")
    assert (said["outcome"], said["status"], said["endReason"]) == ("unheard", "waiting", "client_end")
    assert list(said["stagesMs"]) == ["answered", "connected", "ended"]
    assert 0 < said["stagesMs"]["answered"] < said["stagesMs"]["connected"] < said["stagesMs"]["ended"]
    assert await ended_by(api, said) == ("ended", "client_end")


async def test_ctrl_c_ends_the_session_and_says_so(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey)
    async with a_command("call", "--url", address(api)) as command:
        await command.says("the caller is in the room")
        command.process.send_signal(signal.SIGINT)
        ran = await command.end()
    assert ran.code == 130, ran
    assert "ended: client_end" in ran.output
    assert ran.output.splitlines()[-1] == "interrupted"
    assert "Traceback" not in ran.errors


async def test_ctrl_c_in_a_burst_ends_every_session_and_still_sums_up(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey)
    arguments = ("call", "--url", address(api), "--count", "6", "--burst", "2", "--json")
    async with a_command(*arguments) as command:
        await api_has_sessions(api, 2)
        command.process.send_signal(signal.SIGTERM)
        ran = await command.end()
    *calls, summary = ran.documents
    assert ran.code == 130, ran
    assert [call["outcome"] for call in calls] == ["interrupted"] * 2, "no second group"
    assert summary["summary"]["outcomes"] == {"interrupted": 2}
    assert [await ended_by(api, call) for call in calls] == [("ended", "client_end")] * 2


async def api_has_sessions(api: RunningApi, count: int) -> None:
    async def has() -> bool:
        return len((await api.get("/orchestrator/sessions")).body["sessions"]) == count

    await wait_until_async(has, what=f"{count} sessions")


async def test_a_wrong_key_is_refused_and_the_right_one_from_standard_input_is_not_shown(
    make_settings: MakeSettings, valkey: Valkey
) -> None:
    host_is_seen(valkey)
    async with running_api(make_settings(api_keys=KEY)) as api:
        ran = await run_command("call", "--url", address(api), GREENROOM_API_KEY="wrong")
        assert ran.code == 3, ran
        assert ran.output.startswith("refused: ")
        right = await run_command("call", "--url", address(api), "--ask-key", "--patience", "1", told=f"{KEY}\n")
        assert right.code == 5, right
        assert KEY not in right.output + right.errors


async def test_a_house_that_is_not_there_is_unavailable() -> None:
    ran = await run_command("call", "--url", f"http://127.0.0.1:{free_port()}", "--json")
    assert ran.code == 4, ran
    assert ran.documents[0]["outcome"] == "unavailable"
    assert "does not answer" in ran.documents[0]["detail"]


async def test_an_outage_behind_the_api_is_unavailable(api: RunningApi, valkey: Valkey) -> None:
    valkey.freeze()
    ran = await run_command("call", "--url", address(api))
    assert ran.code == 4, ran
    assert "503" in ran.output


async def test_a_livekit_server_that_cannot_be_reached_is_unavailable_and_the_session_is_ended(
    make_settings: MakeSettings, valkey: Valkey
) -> None:
    host_is_seen(valkey)
    nowhere = f"ws://127.0.0.1:{free_port()}"
    async with running_api(make_settings(livekit_public_url=nowhere)) as api:
        ran = await run_command("call", "--url", address(api), "--json")
        (said,) = ran.documents
        assert ran.code == 4, ran
        assert said["detail"] == f"LiveKit at {nowhere} cannot be joined: it cannot be reached"
        assert "eyJ" not in ran.output + ran.errors, "the token"
        assert await ended_by(api, said) == ("ended", "client_end")


async def test_a_room_that_is_lost_cuts_the_call_off(api: RunningApi, valkey: Valkey, livekit: LiveKitServer) -> None:
    host_is_seen(valkey)
    async with a_command("call", "--url", address(api)) as command:
        await command.says("the caller is in the room")
        (session,) = (await api.get("/orchestrator/sessions")).body["sessions"]
        await livekit.delete_room(session["sessionId"])
        ran = await command.end()
    assert ran.code == 7, ran
    assert "cutOff: the room was closed or lost" in ran.output


async def test_a_caller_that_is_left_ends_its_session_whatever_happened(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey)
    try:
        async with Greenroom(address(api)) as greenroom, Caller(greenroom) as caller:
            session_id = (await caller.start(userName="Ann")).session_id
            raise KeyError
    except KeyError:
        shown = await api.show(session_id)
    assert (shown["status"], shown["endReason"]) == ("ended", "client_end")


@pytest.mark.parametrize(
    ("error", "says"),
    [("OSError('no PortAudio')", "no PortAudio; on Debian"), ("ImportError", "sounddevice is not installed")],
)
async def test_a_machine_without_a_microphone_is_told_how_to_get_one(
    api: RunningApi, tmp_path: Path, error: str, says: str
) -> None:
    (tmp_path / "sounddevice.py").write_text(f"raise {error}")
    ran = await run_command("call", "--url", address(api), "--microphone", PYTHONPATH=str(tmp_path))
    assert ran.code == 2, ran
    assert says in ran.errors
    assert not (await api.get("/orchestrator/sessions")).body["sessions"]


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced() -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        seen.append(1)
        if len(seen) == 2:  # comes over the first connection, which was to be kept
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n" + b'{"status": "x"}')
        with contextlib.suppress(asyncio.IncompleteReadError):
            await answer_once(reader, writer)
        writer.close()

    seen: list[int] = []
    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        greenroom = Greenroom(url)
        async with greenroom:
            await greenroom.end("session_1")
            await greenroom.end("session_1")
    assert len(seen) == 3
