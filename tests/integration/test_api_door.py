"""Who gets in how often, from where, and whose scripts may look."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from backend.orchestrator import gate
from backend.orchestrator.keyring import LOOK_SECONDS
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import Answer, RunningApi, running_api
from tests.valkey_server import Valkey
from tests.waiting import wait_until_async

ORIGIN = "https://app.example.com"
KEY = {"Authorization": "Bearer one"}
START = {"userName": "Ann"}


async def start(api: RunningApi, **headers: str) -> Answer:
    return await api.ask("POST", "/api/session/start", json=START, headers=headers)


async def visitor(api: RunningApi) -> dict[str, str]:
    """A new visitor of the page, with their cookie."""
    return {"Cookie": (await api.get("/")).headers["Set-Cookie"].partition(";")[0]}


# -- keys that change


async def test_a_key_is_let_in_and_put_out_again_without_a_restart(make_settings: MakeSettings, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    async with running_api(make_settings(api_keys_file=file)) as api:
        assert (await api.get("/stats")).status == 401  # a file guards as the variable does
        assert (await api.get("/stats", headers=KEY)).status == 200
        file.write_text("two\n")

        async def is_out() -> bool:
            return (await api.get("/stats", headers=KEY)).status == 401

        await wait_until_async(is_out, timeout=LOOK_SECONDS + 3, what="the key is withdrawn")
        assert (await api.get("/stats", headers={"Authorization": "Bearer two"})).status == 200


# -- how often


@pytest.fixture
async def limited(make_settings: MakeSettings) -> AsyncIterator[RunningApi]:
    """An API with two keys of three calls an hour each."""
    async with running_api(make_settings(api_keys="one,two", rate_limit="100/second; 3/hour")) as api:
        yield api


async def test_each_key_may_call_so_often(limited: RunningApi, valkey: Valkey) -> None:
    answers = [await limited.get("/stats", headers=KEY) for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["2", "1", "0", "0", "0"]
    assert {answer.headers["RateLimit-Limit"] for answer in answers} == {"3"}
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {"100;w=1, 3;w=3600"}
    refused = answers[-1]
    assert refused.body.keys() == {"success", "error", "detail"}
    assert refused.body["error"] == "rate_limited"
    assert 0 < int(refused.headers["Retry-After"]) == int(refused.headers["RateLimit-Reset"]) <= 3_600
    assert (await limited.get("/stats", headers={"Authorization": "Bearer two"})).status == 200
    assert (await limited.get("/livez", headers=KEY)).status == 200  # needs no key, is not counted
    counted = [key for key in valkey.client.scan_iter() if key.startswith("rate:")]
    assert counted
    assert not any("one" in key for key in counted)


async def test_every_answer_to_a_key_says_what_is_left(limited: RunningApi) -> None:
    unknown = await limited.get("/api/session/session_1_0123456789abcdef", headers=KEY)
    started, metrics = await start(limited, **KEY), await limited.get("/metrics", headers=KEY)
    assert [answer.status for answer in (unknown, started, metrics)] == [404, 200, 200]
    assert [answer.headers["RateLimit-Remaining"] for answer in (unknown, started, metrics)] == ["2", "1", "0"]
    assert "RateLimit-Limit" not in (await limited.get("/stats")).headers


async def test_two_instances_count_together(make_settings: MakeSettings) -> None:
    known = {"api_keys": "one", "rate_limit": "4/hour"}
    async with running_api(make_settings(**known)) as first, running_api(make_settings(**known)) as second:
        calls = [api.get("/stats", headers=KEY) for api in (first, second) for _ in range(10)]
        statuses = [answer.status for answer in await asyncio.gather(*calls)]
    assert sorted(statuses) == [200] * 4 + [429] * 16


async def test_without_a_limit_nothing_is_counted(make_settings: MakeSettings, valkey: Valkey) -> None:
    async with running_api(make_settings(api_keys="one")) as api:
        answer = await start(api, **KEY)
    assert "RateLimit-Limit" not in answer.headers
    assert not valkey.client.keys("rate:*")


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "down"])
async def test_with_redis_away_a_limited_call_fails_as_any_other_and_soon(
    limited: RunningApi, valkey: Valkey, is_frozen: bool
) -> None:
    assert (await start(limited, **KEY)).status == 200
    valkey.freeze() if is_frozen else valkey.kill()
    before = time.monotonic()
    refused, metrics = await asyncio.gather(start(limited, **KEY), limited.get("/metrics", headers=KEY))
    assert (refused.status, refused.body["error"], metrics.status) == (503, "unavailable", 200)
    assert time.monotonic() - before < 3


# -- the page's visitors, and from where


async def test_visitors_of_one_address_may_start_so_often(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(api_keys="one", page="on", page_rate_limit="2/hour")) as api:
        answers = [await start(api, **await visitor(api)) for _ in range(3)]  # a new cookie does not help
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[-1].body["error"] == "rate_limited"
        assert (await start(api, **KEY)).status == 200  # keys are not visitors
        shown = await api.get(f"/api/session/{answers[0].body['sessionId']}", headers=await visitor(api))
        assert shown.status == 404  # only starts are counted


async def test_an_address_that_a_client_makes_up_does_not_help_it(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(api_keys="one", page="on", page_rate_limit="1/hour")) as api:
        mine = await visitor(api)
        answers = [await start(api, **mine, **{"X-Forwarded-For": f"203.0.113.{number}"}) for number in range(3)]
        cookie = (await api.get("/", headers={"X-Forwarded-Proto": "https"})).headers["Set-Cookie"]
    assert [answer.status for answer in answers] == [200, 429, 429]
    assert "Secure" not in cookie


async def test_behind_a_trusted_proxy_each_client_has_its_own_limit(make_settings: MakeSettings) -> None:
    known: dict[str, Any] = {"api_keys": "one", "page": "on", "page_rate_limit": "1/hour"}
    async with running_api(make_settings(trusted_proxies="127.0.0.1, 10.0.0.0/8", **known)) as api:
        mine = await visitor(api)

        async def status(*forwarded_for: str) -> int:
            headers = CIMultiDict([*mine.items(), *(("X-Forwarded-For", value) for value in forwarded_for)])
            return (await api.ask("POST", "/api/session/start", json=START, headers=headers)).status

        assert [await status("203.0.113.1") for _ in range(2)] == [200, 429]
        assert await status("203.0.113.2, 10.1.2.3") == 200  # two proxies
        # What the client wrote itself stands on the left, and may even name a proxy of ours.
        for made_up in ("203.0.113.9, 203.0.113.1", "10.9.9.9, 203.0.113.1, 10.1.2.3", "x, 203.0.113.1:4711"):
            assert await status(made_up) == 429
        assert await status("203.0.113.9", "203.0.113.1") == 429
        assert await status("2001:db8:1:2::1") == 200
        assert await status("2001:db8:1:2:ffff::2") == 429  # the same subscriber
        assert await status("2001:db8:1:3::1") == 200
        assert [await status("what is this"), await status("<script>", "%$")] == [200, 429]
        secure = await api.get("/", headers={"X-Forwarded-Proto": "https"})
        assert "Secure" in secure.headers["Set-Cookie"]


# -- whose scripts


@pytest.fixture
async def shared(make_settings: MakeSettings) -> AsyncIterator[RunningApi]:
    """An API whose answers one origin's scripts may read."""
    async with running_api(make_settings(api_keys="one", cors_origins=ORIGIN, rate_limit="1000/hour")) as api:
        yield api


async def test_scripts_of_a_listed_origin_read_answers_and_errors(shared: RunningApi) -> None:
    origin = {"Origin": ORIGIN}
    answers = [
        await start(shared, **KEY, **origin),
        await start(shared, **origin),
        await shared.get("/nothing", headers=origin),
        await shared.ask("POST", "/api/session/start", data=b"{" + b" " * 70_000, headers=KEY | origin),
    ]
    assert [answer.status for answer in answers] == [200, 401, 404, 413]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "RateLimit-Remaining" in answer.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Origin" in answer.headers["Vary"]


async def test_a_browser_that_asks_first_is_told_what_it_may_send(shared: RunningApi) -> None:
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}
    allowed = await shared.ask("OPTIONS", "/api/session/start", headers={"Origin": ORIGIN} | wish)
    assert (allowed.status, allowed.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert allowed.headers["X-Frame-Options"] == "DENY"
    foreign = await shared.ask("OPTIONS", "/api/session/start", headers={"Origin": "https://evil.example"} | wish)
    assert foreign.status == 400
    assert "Access-Control-Allow-Origin" not in foreign.headers


@pytest.mark.parametrize("origin", ["https://evil.example", f"{ORIGIN}.evil.example", "null", "http://app.example.com"])
async def test_scripts_of_other_origins_read_nothing(shared: RunningApi, origin: str) -> None:
    assert "Access-Control-Allow-Origin" not in (await start(shared, **KEY, Origin=origin)).headers


async def test_an_error_that_nobody_foresaw_has_all_headers_too(
    shared: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(*_: object) -> None:
        raise RuntimeError("the-secret-in-an-error")

    monkeypatch.setattr("backend.orchestrator.api.views.stats", break_down)
    answer = await shared.get("/stats", headers=KEY | {"Origin": ORIGIN})
    assert (answer.status, answer.body["error"]) == (500, "internal_error")
    assert "the-secret-in-an-error" not in answer.text
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    for name in gate.HEADERS:
        assert name.decode().title() in {header.title() for header in answer.headers}
