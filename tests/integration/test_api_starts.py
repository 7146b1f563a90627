"""A start may be repeated, and what was refused with 503 never happens: whichever part is away."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from backend.common import keys
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import Answer, RunningApi, host_is_seen, running_api, silent_server
from tests.livekit_server import LiveKitServer
from tests.valkey_server import Valkey, free_port
from tests.waiting import wait_until, wait_until_async

SOON = 3.0
"""A client's patience: within so many seconds every outage is answered."""


@asynccontextmanager
async def relay(livekit: LiveKitServer, is_answered: Callable[[], bool]) -> AsyncIterator[str]:
    """A way to LiveKit on which something happens: a request is passed on if ``is_answered()``."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        request += await reader.readexactly(int(request.lower().partition(b"content-length:")[2].split()[0]))
        if is_answered():
            answers, upstream = await asyncio.open_connection("127.0.0.1", livekit.port)
            upstream.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            writer.write(await answers.read())
            upstream.close()
        else:
            await reader.read()  # until the client gives up
        writer.close()

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def relay_to_redis(valkey: Valkey, before: Callable[[bytes], None]) -> AsyncIterator[str]:
    """A way to Redis on which something happens: ``before(request)``, and then the request is passed on."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, upstream = await asyncio.open_connection("127.0.0.1", valkey.port)
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await asyncio.gather(pump(reader, upstream, before), pump(answers, writer, lambda _: None))
        for end in (upstream, writer):
            with contextlib.suppress(ConnectionError):
                end.close()
                await end.wait_closed()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, see: Callable[[bytes], None]) -> None:
        while data := await reader.read(65_536):
            see(data)
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


def assert_unavailable(answer: Answer) -> None:
    assert (answer.status, answer.body["error"]) == (503, "unavailable"), answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.seconds < SOON


def assert_nothing_happens(valkey: Valkey) -> None:
    """What was begun is on record as ended by us, and nobody waits."""
    (session_id,) = sessions_of(valkey)
    record = valkey.client.hmget(keys.session(session_id), "state", "end_reason", "ended_by", "conversationDuration")
    assert record == ["ended", "room_lost", "platform", "0"]
    assert valkey.client.zcard(keys.SESSION_OPEN) == valkey.client.zcard(keys.SESSION_WAITING) == 0


def sessions_of(valkey: Valkey) -> list[str]:
    found: list[str] = valkey.client.zrange(keys.SESSION_ALL, 0, -1)
    return found


# -- the same start again


async def test_a_start_with_the_same_key_and_body_is_the_same_session(api: RunningApi, valkey: Valkey) -> None:
    await api.agent("a")
    await api.agent("b")
    first, again = await api.start(key="k"), await api.start(key="k")
    assert again.status == 200
    assert again.body | {"message": ""} == first.body | {"message": "", "token": again.body["token"]}
    assert again.body["token"]
    assert valkey.client.zrange(keys.POOL_READY, 0, -1) in (["a"], ["b"])  # the second agent was not taken


async def test_a_repeated_start_has_its_room_also_when_the_first_one_died_before_it_was_made(api: RunningApi) -> None:
    session_id = await api.started(key="k")
    await api.house.rooms.delete(session_id)
    assert (await api.start(key="k")).body["sessionId"] == session_id
    assert session_id in [room.name for room in await api.house.rooms.list_ours()]


async def test_fifty_equal_starts_at_once_are_one_session(make_settings: MakeSettings, valkey: Valkey) -> None:
    async with running_api(make_settings(deployment_id="fifty")) as api:
        for name in "abc":
            await api.agent(name)
        answers = await asyncio.gather(*(api.start(key="k") for _ in range(50)))
        assert {answer.status for answer in answers} == {200}
        (session_id,) = {answer.body["sessionId"] for answer in answers}
        assert sessions_of(valkey) == [session_id]
        assert valkey.client.zcard(keys.POOL_READY) == 2

        async def only_its_room() -> bool:
            return [room.name for room in await api.house.rooms.list_ours()] == [session_id]

        await wait_until_async(only_its_room, what="the rooms that were made in vain are deleted")


async def test_an_ended_session_is_still_the_answer_without_a_token(api: RunningApi) -> None:
    session_id = await api.started(key="k")
    await api.end(session_id)
    again = (await api.start(key="k")).body
    assert (again["sessionId"], again["status"], again["token"]) == (session_id, "ended", None)


async def test_a_live_session_is_still_the_answer(api: RunningApi) -> None:
    session_id, _, _ = await api.live(key="k")
    again = (await api.start(key="k")).body
    assert (again["sessionId"], again["status"]) == (session_id, "live")
    assert again["token"]


async def test_a_key_with_another_body_is_a_conflict_that_changes_nothing(api: RunningApi, valkey: Valkey) -> None:
    session_id = await api.started(key="k")
    answer = await api.start(key="k", voiceId="Hades")
    assert (answer.status, answer.body["error"]) == (409, "idempotency_key_reused")
    assert sessions_of(valkey) == [session_id]
    assert (await api.show(await api.started()))["voiceId"] == "Ashley"


async def test_starts_without_a_key_are_sessions_of_their_own(api: RunningApi) -> None:
    assert await api.started() != await api.started()


async def test_each_api_key_has_start_keys_of_its_own(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(api_keys="one,two")) as api:
        starts = [
            await api.post(
                "/api/session/start", {"userName": "Ann"}, Idempotency_Key="k", Authorization=f"Bearer {key}"
            )
            for key in ("one", "two", "one")
        ]
    first, second, again = (start.body["sessionId"] for start in starts)
    assert again == first != second


async def test_a_refusal_is_not_remembered(make_settings: MakeSettings, valkey: Valkey) -> None:
    async with running_api(make_settings(max_waiting=0)) as api:
        assert (await api.start(key="k")).status == 429
        host_is_seen(valkey)

        async def succeeds() -> bool:
            return (await api.start(key="k")).status == 200

        await wait_until_async(succeeds, what="the same start succeeds once there is a host")


# -- Redis is away


async def test_without_redis_every_call_that_needs_it_is_503(api: RunningApi, valkey: Valkey) -> None:
    session_id = await api.started()
    valkey.kill()
    asked = [
        api.start(),
        api.end(session_id),
        api.get(f"/orchestrator/session/{session_id}"),
        api.get("/orchestrator/sessions"),
        api.post("/api/token", {"sessionId": session_id, "userId": "Ann"}),
        api.get("/stats"),
    ]
    for answer in await asyncio.gather(*asked):
        assert_unavailable(answer)
    health = await api.get("/health")
    assert (health.status, health.body["components"]["redis"]["state"]) == (503, "failed")
    assert health.seconds < SOON
    assert (await api.get("/livez")).status == 200


async def test_the_api_goes_on_by_itself_when_redis_is_back(api: RunningApi, valkey: Valkey) -> None:
    session_id = await api.started()
    valkey.kill()
    assert_unavailable(await api.start())
    valkey.start()
    assert (await api.show(session_id))["status"] == "waiting"
    assert (await api.start()).status == 200


async def test_a_frozen_redis_is_not_waited_for(api: RunningApi, valkey: Valkey) -> None:
    valkey.freeze()
    for answer in await asyncio.gather(*(api.start(key=f"k{number}") for number in range(10))):
        assert_unavailable(answer)
    valkey.thaw()
    assert (await api.start()).status == 200


@pytest.mark.parametrize("key", [{}, {"key": "k"}], ids=["without a key", "with a key"])
async def test_what_a_frozen_redis_made_us_refuse_never_happens(
    make_settings: MakeSettings, valkey: Valkey, key: dict[str, str]
) -> None:
    """Frozen between our last question and the start itself: that lies in Redis' socket, and is read when it thaws."""
    is_due = asyncio.Event()

    def freeze(request: bytes) -> None:
        if b"EVALSHA" in request and is_due.is_set():
            is_due.clear()
            valkey.freeze()

    async with relay_to_redis(valkey, freeze) as url, running_api(make_settings(redis_url=url)) as api:
        before = await api.started()  # so that Redis has the script, and runs it when it reads its name
        await api.agent("a")
        await api.agent("b")
        is_due.set()
        assert_unavailable(await api.start(**key))
        assert not is_due.is_set()
        valkey.thaw()
        wait_until(valkey.client.ping)
        valkey.client.connection_pool.disconnect()  # a later connection: what came before it has been done
        assert valkey.client.zrange(keys.POOL_READY, 0, -1) == ["b"]
        assert sessions_of(valkey) == [before]


async def test_health_answers_soon_while_redis_is_frozen(api: RunningApi, valkey: Valkey) -> None:
    valkey.freeze()
    answers = await asyncio.gather(*(api.get("/health") for _ in range(5)))
    assert {answer.status for answer in answers} == {503}
    assert max(answer.seconds for answer in answers) < SOON


# -- the broker is away


async def test_a_start_does_not_wait_for_a_broker_that_hangs(make_settings: MakeSettings, valkey: Valkey) -> None:
    host_is_seen(valkey)
    async with silent_server() as address, running_api(make_settings(broker_url=f"redis://{address}/0")) as api:
        answer = await api.start()
        assert (answer.status, answer.seconds < 1) == (200, True)
        health = await api.get("/health")
        assert {name for name, part in health.body["components"].items() if part["state"] == "failed"} == {"broker"}
        assert health.seconds < SOON
        assert_unavailable(await api.get("/stats"))


async def test_a_broker_that_is_down_is_a_part_that_failed(make_settings: MakeSettings, valkey: Valkey) -> None:
    host_is_seen(valkey)
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    async with running_api(make_settings(broker_url=nowhere)) as api:
        assert (await api.start()).status == 200
        health = await api.get("/health")
        assert {name for name, part in health.body["components"].items() if part["state"] == "failed"} == {"broker"}
        assert_unavailable(await api.get("/stats"))


# -- LiveKit is away


async def test_without_livekit_a_start_is_503_and_its_retry_is_a_new_session(
    make_settings: MakeSettings, valkey: Valkey, livekit: LiveKitServer
) -> None:
    async with running_api(make_settings(livekit_url=f"ws://127.0.0.1:{free_port()}")) as api:
        assert_unavailable(await api.start(key="k"))
        health = await api.get("/health")
        assert (health.status, health.body["components"]["livekit"]["state"]) == (503, "failed")
    assert_nothing_happens(valkey)
    async with running_api(make_settings(livekit_url=livekit.url)) as api:
        answer = await api.start(key="k")
    assert (answer.status, answer.body["status"]) == (200, "waiting")
    assert answer.body["token"]


async def test_a_livekit_that_hangs_is_given_up_in_time(make_settings: MakeSettings, valkey: Valkey) -> None:
    async with silent_server() as address, running_api(make_settings(livekit_url=f"ws://{address}")) as api:
        assert_unavailable(await api.start())
        assert (await api.get("/health")).seconds < SOON
    assert_nothing_happens(valkey)


async def test_a_livekit_that_is_slow_once_is_asked_again(make_settings: MakeSettings, livekit: LiveKitServer) -> None:
    """The second try succeeds after a second."""
    tries = itertools.count()
    async with (
        relay(livekit, lambda: next(tries) > 0) as address,
        running_api(make_settings(livekit_url=address)) as api,
    ):
        answer = await api.start()
    assert (answer.status, next(tries)) == (200, 2)
    assert 1 < answer.seconds < SOON


async def test_a_livekit_that_does_not_know_our_key_is_503_and_says_whose_fault_it_is(
    make_settings: MakeSettings,
) -> None:
    async with running_api(make_settings(livekit_api_secret="x" * 40)) as api:
        answer = await api.start()
    assert (answer.status, answer.body["error"]) == (503, "unavailable")
    assert "operator" in answer.body["detail"]
    assert "x" * 40 not in answer.text


async def test_a_session_ends_while_livekit_is_away(
    make_settings: MakeSettings, valkey: Valkey, api: RunningApi
) -> None:
    session_id = await api.started()
    async with running_api(make_settings(livekit_url=f"ws://127.0.0.1:{free_port()}")) as cut_off:
        answer = await cut_off.end(session_id)
    assert (answer.status, answer.seconds < 1) == (200, True)
    wait_until(lambda: valkey.client.hget(keys.session(session_id), "state") == "ended")
