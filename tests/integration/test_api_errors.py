"""Whatever is sent, the answer is an error of one shape that says what to do and quotes no secret; never a 500."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from backend.common import keys
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import Answer, RunningApi, host_is_seen, running_api
from tests.valkey_server import Valkey
from tests.waiting import wait_until_async

PRIVATE = "the-prompt-nobody-may-see"
NAMES, OPENING, PROMPT, METADATA = 100, 500, 32_768, 4_096
BODY_BYTES = 64 * 1024
NESTED = 3_000


WRONG_STARTS: list[tuple[dict[str, Any], str]] = [
    ({}, "userName is missing"),
    ({"user_name": "Ann"}, "'user_name' is not a field"),
    ({"userName": "Ann", "sytemPrompt": PRIVATE}, "'sytemPrompt' is not a field"),
    ({"userName": "Ann", "x" * 3_000 + PRIVATE: 1}, "is not a field"),
    ({"userName": "Ann", "a\ud800b": 1}, "body"),
    *(({"userName": wrong}, "userName") for wrong in (7, None, "", "  ", ["Ann"], True)),
    ({"userName": "Ann", "systemPrompt": {"text": PRIVATE}}, "systemPrompt"),
    *(({"userName": "Ann", "maxDurationSeconds": wrong}, "maxDurationSeconds") for wrong in ("60", True, 1.5, 0, -1)),
    ({"userName": "Ann", "maxDurationSeconds": 1801}, "maxDurationSeconds may be at most 1800"),
    ({"userName": "Ann", "maxDurationSeconds": 10**400}, "maxDurationSeconds"),
    *(({"userName": "Ann", "metadata": wrong}, "metadata") for wrong in ([PRIVATE], PRIVATE, {"k": float("nan")})),
    *(({"userName": "Ann", "metadata": wrong}, "metadata") for wrong in ({"k": "\ud800"}, {"\udfff": 1})),
]


def assert_refused(answer: Answer, status: int, code: str) -> str:
    """See that an error looks as every error does; returns its detail."""
    assert (answer.status, answer.body.get("error")) == (status, code), answer.text
    assert answer.body.keys() == {"success", "error", "detail"}
    assert answer.body["success"] is False
    assert PRIVATE not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    detail = answer.body["detail"]
    assert detail
    assert isinstance(detail, str)
    return detail


async def send(api: RunningApi, body: bytes, **headers: str) -> Answer:
    """Start a session with a body as it is."""
    return await api.ask(
        "POST", "/api/session/start", data=body, headers={"Content-Type": "application/json"} | headers
    )


# -- what is wrong with a request


async def test_what_is_wrong_with_a_start_is_named(api: RunningApi) -> None:
    for body, named in WRONG_STARTS:
        answer = await send(api, json.dumps(body).encode())
        assert named in assert_refused(answer, 422, "invalid_request")


async def test_what_is_no_text_is_refused(api: RunningApi) -> None:
    fields = ("userName", "userId", "voiceId", "openingLine", "systemPrompt")
    for field, text in itertools.product(fields, ("a\x00b", "a\x1bb", "a\x7fb", "\ud800", "a\udfffb")):
        answer = await send(api, json.dumps({"userName": "Ann", field: text}).encode())
        assert field in assert_refused(answer, 422, "invalid_request")


async def test_a_name_is_one_line_and_a_prompt_may_be_many(api: RunningApi) -> None:
    for text in ("a\nb", "a\r\nSet-Cookie: x=y", "a\u2028b"):
        assert_refused(await api.start(userName=text), 422, "invalid_request")
        assert (await api.start(systemPrompt=text)).status == 200


async def test_a_name_is_only_a_name(api: RunningApi) -> None:
    for name in ("--help", "-rf", "$(id)", "../../x", "a:b", "{x}", "*", "Zoë 🎧", "%s%n", "' OR 1=1"):
        session_id = await api.started(userName=name, userId=name, voiceId=name)
        shown = await api.show(session_id)
        assert (shown["userName"], shown["voiceId"]) == (name, name)
        assert (await api.post("/api/token", {"sessionId": session_id, "userId": name})).status == 200


async def test_a_text_may_have_so_many_characters_and_not_one_more(api: RunningApi) -> None:
    most = {"userName": NAMES, "userId": NAMES, "voiceId": NAMES, "openingLine": OPENING, "systemPrompt": PROMPT}
    for field, number in most.items():
        letter = "x" if field == "systemPrompt" else "é"  # so many accents would be too large a body
        assert (await api.start(**{field: letter * number})).status == 200
        detail = assert_refused(await api.start(**{field: letter * (number + 1)}), 422, "invalid_request")
        assert detail == f"{field}: string should have at most {number} characters"


async def test_metadata_may_have_so_many_bytes_and_not_one_more(api: RunningApi) -> None:
    around = len(json.dumps({"k": ""}))
    assert (await api.start(metadata={"k": "x" * (METADATA - around)})).status == 200
    assert_refused(await api.start(metadata={"k": "x" * (METADATA - around + 1)}), 422, "invalid_request")


# -- what is no request


async def test_a_body_that_is_no_start_is_refused(api: RunningApi) -> None:
    deep = b'{"userName": "Ann", "metadata": %s}'
    bodies = [
        *(b"", b"{", b"null", b"[]", b'"' + PRIVATE.encode() + b'"', b'{"userName": "Ann"} x', b"\xff\xfe"),
        b'{"userName": "\xff"}',
        b"[" * NESTED,
        deep % (b'{"a":' * NESTED + b"1" + b"}" * NESTED),
        deep % (b'{"a": ' + b"[" * NESTED + b"]" * NESTED + b"}"),
        b'{"userName": "Ann", "maxDurationSeconds": ' + b"9" * 5_000 + b"}",
    ]
    for body in bodies:
        answer = await send(api, body)
        assert answer.status in (400, 422)
        assert_refused(answer, answer.status, answer.body["error"])


async def test_a_body_that_other_sites_could_send_is_refused(api: RunningApi) -> None:
    """A form or a script of any page can send these to a server on the reader's own machine."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = await send(api, b'{"userName": "Ann"}', **{"Content-Type": kind})
        assert_refused(answer, 422, "invalid_request")
    untyped = await api.ask(
        "POST", "/api/session/start", data=b'{"userName": "Ann"}', skip_auto_headers=["Content-Type"]
    )
    assert_refused(untyped, 422, "invalid_request")


@pytest.mark.parametrize("path", ["/api/session/start", "/livekit/webhook"])
@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "with a length"])
async def test_a_body_over_64_KiB_is_too_large(api: RunningApi, path: str, is_chunked: bool) -> None:
    body = b'{"userName": "Ann"' + b" " * BODY_BYTES + b"}"

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 8_192):
            yield body[start : start + 8_192]

    headers = {"Content-Type": "application/json"}
    answer = await api.ask("POST", path, data=chunks() if is_chunked else body, headers=headers)
    assert_refused(answer, 413, "body_too_large")


async def test_a_body_of_64_KiB_is_taken(api: RunningApi) -> None:
    body = b'{"userName": "Ann"}'
    assert (await send(api, body + b" " * (BODY_BYTES - len(body)))).status == 200


async def test_a_path_that_is_not_there_says_so(api: RunningApi) -> None:
    for path in ("/nothing", "/page/../api.py", "/page/..%2Fapi.py", "/page/package.json", "/orchestrator/session/"):
        assert_refused(await api.get(URL(path, encoded=True)), 404, "not_found")
    for name in ("start", "%00%0d%0aX:1", "%ff%fe", "session_1_%F0%9F%8E%A7"):
        answer = await api.get(URL(f"/orchestrator/session/{name}", encoded=True))
        assert_refused(answer, 404, "session_not_found")
    for method, path in {"PUT": "/orchestrator/session/start", "GET": "/livekit/webhook"}.items():
        assert_refused(await api.ask(method, path), 405, "method_not_allowed")


async def test_a_start_key_has_1_to_200_characters(api: RunningApi) -> None:
    for key in ("", "k" * 201):
        answer = await api.post("/api/session/start", {"userName": "Ann"}, Idempotency_Key=key)
        assert "Idempotency-Key" in assert_refused(answer, 422, "invalid_request")


async def test_a_header_beyond_all_measure_does_no_harm(api: RunningApi) -> None:
    with contextlib.suppress(aiohttp.ClientError):  # hung up on: fine
        answer = await api.post("/api/session/start", {"userName": "Ann"}, Idempotency_Key="k" * 200_000)
        assert 400 <= answer.status < 500
    assert (await api.start()).status == 200


async def test_a_client_that_hangs_up_does_no_harm(api: RunningApi) -> None:
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", api.settings.port)
        writer.write(b"POST /api/session/start HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        writer.close()
        await writer.wait_closed()
    assert (await api.start()).status == 200


# -- what is full


async def test_a_full_house_refuses_and_takes_the_room_back(make_settings: MakeSettings, valkey: Valkey) -> None:
    async with running_api(make_settings(max_waiting=0, deployment_id="full")) as api:
        answer = await api.start(voiceId="Hades")
        assert "waiting line is full" in assert_refused(answer, 429, "at_capacity")
        assert 2 <= int(answer.headers["Retry-After"]) <= 10
        await wait_until_async(lambda: no_rooms(api), what="the room of the refused start is deleted")
    assert valkey.client.keys() == [keys.FLEET_COUNTS]


async def no_rooms(api: RunningApi) -> bool:
    return await api.house.rooms.list_ours() == []


async def test_the_line_is_as_long_as_the_hosts_and_max_waiting_allow(
    make_settings: MakeSettings, valkey: Valkey
) -> None:
    host_is_seen(valkey, "h1", capacity=2)
    host_is_seen(valkey, "h2", capacity=1)
    async with running_api(make_settings(max_waiting=1)) as api:
        statuses = [(await api.start()).status for _ in range(6)]
    assert statuses == [200, 200, 200, 200, 429, 429]


async def test_a_user_has_a_ceiling_of_open_sessions(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(max_sessions_per_user=1)) as api:
        first = await api.started(userName="Ann")
        answer = await api.start(userName="Ann")
        assert "MAX_SESSIONS_PER_USER" in assert_refused(answer, 429, "at_capacity")
        assert "Retry-After" in answer.headers
        assert (await api.start(userName="Bob")).status == 200
        await api.end(first)
        assert (await api.start(userName="Ann")).status == 200


async def test_a_line_that_moves_too_slowly_takes_nobody_more(api: RunningApi, valkey: Valkey) -> None:
    first = await api.started()
    valkey.client.zincrby(keys.SESSION_WAITING, -26_000_000, first)
    assert "too slowly" in assert_refused(await api.start(), 429, "at_capacity")
