"""LiveKit's webhooks: taken from a real server, once, and from nobody else."""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from livekit import api as livekit_api
from livekit import rtc
from loguru import logger

from backend.common import keys
from backend.common.contract import AGENT_IDENTITY
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import Answer, RunningApi, running_api
from tests.livekit_server import LiveKitServer
from tests.valkey_server import Valkey, free_port
from tests.waiting import wait_until_async

PROMPT_SECONDS = 0.1
"""LiveKit has one queue per room and no patience: what is answered later holds up what comes after."""


class CallingServer(LiveKitServer):
    """A LiveKit server that tells an API which is yet to come."""

    def __init__(self, folder: Path) -> None:
        self.api_port = free_port()
        super().__init__(folder, webhook_url=f"http://127.0.0.1:{self.api_port}/livekit/webhook")


@pytest.fixture(scope="module")
def livekit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CallingServer]:
    """Another one than the other tests': its webhooks come to the API of the test."""
    server = CallingServer(tmp_path_factory.mktemp("livekit"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def api(make_settings: MakeSettings, livekit: CallingServer) -> AsyncIterator[RunningApi]:
    """The API at the address that the LiveKit server calls."""
    async with running_api(make_settings(port=livekit.api_port)) as running:
        yield running


def event(name: str = "room_finished", *, room: str, event_id: str = "EV_1", **participant: str) -> bytes:
    """A webhook's body, as LiveKit writes it."""
    body: dict[str, Any] = {"event": name, "id": event_id, "createdAt": str(int(time.time())), "room": {"name": room}}
    if participant:
        body["participant"] = participant
    return json.dumps(body).encode()


def sign(body: bytes, livekit: LiveKitServer, *, key: str = "", secret: str = "", age_seconds: int = 0) -> str:
    """What LiveKit puts into Authorization."""
    token = livekit_api.AccessToken(key or livekit.key, secret or livekit.secret)
    token = token.with_sha256(base64.b64encode(hashlib.sha256(body).digest()).decode())
    return token.with_ttl(timedelta(seconds=300 - age_seconds)).to_jwt()


async def tell(api: RunningApi, body: bytes, token: str | None) -> Answer:
    headers = {"Content-Type": "application/webhook+json"} | ({} if token is None else {"Authorization": token})
    return await api.ask("POST", "/livekit/webhook", data=body, headers=headers)


async def join(livekit: LiveKitServer, token: str) -> rtc.Room:
    room = rtc.Room()
    await room.connect(livekit.url, token)
    return room


async def wait_for_field(valkey: Valkey, key: str, field: str, value: str) -> None:
    await wait_until_async(lambda: bool(valkey.client.hget(key, field) == value), what=f"{field} of {key} is {value}")


# -- from a real server


async def test_who_comes_and_goes_is_kept_by_sid(api: RunningApi, livekit: CallingServer, valkey: Valkey) -> None:
    start = (await api.start()).body
    callers = keys.session_callers(start["sessionId"])
    agent = await join(livekit, valkey.client.hget(keys.session(start["sessionId"]), "room_token"))
    assert agent.local_participant.identity == AGENT_IDENTITY
    for _ in range(2):  # with the same identity, and a SID of its own
        caller = await join(livekit, start["token"])
        await wait_for_field(valkey, callers, caller.local_participant.sid, "joined")
        await caller.disconnect()
        await wait_for_field(valkey, callers, caller.local_participant.sid, "left")
    assert set(valkey.client.hvals(callers)) == {"left"}
    assert valkey.client.hlen(callers) == 2  # the agent is none of them
    await agent.disconnect()


async def test_a_session_ends_with_its_room(api: RunningApi, livekit: CallingServer) -> None:
    session_id = await api.started()
    await livekit.delete_room(session_id)

    async def has_ended() -> bool:
        return bool((await api.show(session_id))["status"] == "ended")

    await wait_until_async(has_ended, what="the session ends")
    shown = await api.show(session_id)
    assert (shown["endReason"], shown["endedBy"]) == ("nobody_came", "caller")


async def test_a_webhook_that_redis_could_not_take_comes_again(
    api: RunningApi, livekit: CallingServer, valkey: Valkey
) -> None:
    session_id = await api.started()
    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record["message"]))
    valkey.kill()
    await livekit.delete_room(session_id)
    await wait_until_async(lambda: "Redis does not answer" in said, what="LiveKit was told to come again")
    valkey.start()

    async def has_ended() -> bool:
        return bool((await api.show(session_id))["status"] == "ended")

    await wait_until_async(has_ended, timeout=10, what="the session ends")
    logger.remove(sink)


# -- one after the other


async def test_an_event_is_answered_at_once_and_acted_on_once(
    api: RunningApi, livekit: CallingServer, valkey: Valkey
) -> None:
    session_id, _, _ = await api.live()
    body = event(room=session_id)
    token = sign(body, livekit)
    first = await tell(api, body, token)
    ended_at = (await api.show(session_id))["endedAt"]
    again = [await tell(api, body, token) for _ in range(3)]
    assert [answer.status for answer in (first, *again)] == [200] * 4
    assert min(answer.seconds for answer in again) < PROMPT_SECONDS
    shown = await api.show(session_id)
    assert (shown["endReason"], shown["endedAt"]) == ("room_lost", ended_at)
    assert 0 < valkey.client.ttl(keys.livekit_event("EV_1")) <= 3_600


async def test_a_webhook_is_503_and_not_marked_while_redis_is_down(
    api: RunningApi, livekit: CallingServer, valkey: Valkey
) -> None:
    session_id = await api.started()
    body = event(room=session_id)
    token = sign(body, livekit)
    valkey.kill()
    down = await tell(api, body, token)
    valkey.start()
    assert (down.status, down.body["error"]) == (503, "unavailable")
    assert (await tell(api, body, token)).status == 200
    assert (await api.show(session_id))["status"] == "ended"


@pytest.mark.parametrize("room", ["", "waiting", "open", "prewarm_1", "x:callers", "session_1_0123456789abcdef"])
async def test_an_event_of_a_room_that_is_none_of_ours_is_taken_and_forgotten(
    api: RunningApi, livekit: CallingServer, valkey: Valkey, room: str
) -> None:
    await api.started()
    before = set(valkey.client.scan_iter())
    for number, name in enumerate(("room_started", "room_finished", "participant_joined", "participant_left")):
        body = event(name, room=room, event_id=f"EV_{number}", sid="PA_1", identity="caller_1")
        assert (await tell(api, body, sign(body, livekit))).status == 200
    assert {key for key in valkey.client.scan_iter() if not key.startswith("livekit:event:")} == before


@pytest.mark.parametrize("name", ["room_started", "track_published", "egress_ended", "something_new"])
async def test_an_event_that_we_do_not_act_on_is_taken(
    api: RunningApi, livekit: CallingServer, valkey: Valkey, name: str
) -> None:
    session_id = await api.started()
    body = event(name, room=session_id)
    assert (await tell(api, body, sign(body, livekit))).status == 200
    assert not valkey.client.keys("livekit:event:*")


# -- from nobody else


async def test_a_webhook_of_doubtful_origin_is_refused(api: RunningApi, livekit: CallingServer, valkey: Valkey) -> None:
    start = (await api.start()).body
    body = event(room=start["sessionId"])
    good = sign(body, livekit)
    doubtful: dict[str, tuple[bytes, str | None]] = {
        "no header": (body, None),
        "an empty header": (body, ""),
        "no token": (body, "x"),
        "another scheme": (body, f"Bearer {good}"),
        "another secret": (body, sign(body, livekit, secret="s" * 40)),
        "another key": (body, sign(body, livekit, key="foreign")),
        "another body": (body + b" ", good),
        "another body's token": (body, sign(body + b" ", livekit)),
        "an old token": (body, sign(body, livekit, age_seconds=300 + 120)),
        "a caller's own token": (body, start["token"]),
        "an agent's token": (body, valkey.client.hget(keys.session(start["sessionId"]), "room_token")),
        "no text": (b"\xff\xfe", sign(b"\xff\xfe", livekit)),
        "no JSON": (b"x", sign(b"x", livekit)),
        "no signature": (body, good.rpartition(".")[0] + "."),
        "no algorithm": (body, unsigned(good)),
        "a deep body": (b"[" * 5_000, sign(b"[" * 5_000, livekit)),
    }
    for what, (sent, token) in doubtful.items():
        answer = await tell(api, sent, token)
        assert (what, answer.status, answer.body.get("error")) == (what, 401, "unauthorized")
        assert not token or token not in answer.text
    assert (await api.show(start["sessionId"]))["status"] == "waiting"
    assert (await tell(api, body, good)).status == 200  # the event itself was fine


def unsigned(token: str) -> str:
    """The token's claims under the algorithm 'none'."""
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{header}.{token.split('.')[1]}."


async def test_a_hundred_forgeries_at_once_do_not_delay_a_true_event(api: RunningApi, livekit: CallingServer) -> None:
    session_id = await api.started()
    body = event(room=session_id)
    forged = sign(body, livekit, secret="s" * 40)
    answers = await asyncio.gather(*(tell(api, body, forged) for _ in range(100)), tell(api, body, sign(body, livekit)))
    assert [answer.status for answer in answers] == [401] * 100 + [200]
