"""Who may call what: API keys, the page's cookie, and nobody else."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backend.common import keys
from backend.orchestrator.auth import COOKIE, Doorkeeper
from tests.integration.conftest import MakeSettings
from tests.integration.running_api import Answer, RunningApi, host_is_seen, running_api
from tests.valkey_server import Valkey

UNKNOWN = "session_1762018728198_0000000000000000"
GUARDED = (
    ("POST", "/orchestrator/session/start", {"userName": "Ann"}),
    ("POST", "/api/session/start", {"userName": "Ann"}),
    ("POST", "/orchestrator/session/end", {"sessionId": UNKNOWN}),
    ("GET", f"/orchestrator/session/{UNKNOWN}", None),
    ("GET", "/orchestrator/sessions", None),
    ("POST", "/api/token", {"sessionId": UNKNOWN, "userId": "Ann"}),
    ("GET", "/stats", None),
    ("GET", "/metrics", None),
)
OPEN = ("/health", "/livez", "/docs", "/openapi.json", "/page/swagger-ui.css", "/page/greenroom.js")


@pytest.fixture
async def guarded(make_settings: MakeSettings) -> AsyncIterator[RunningApi]:
    """An API with two keys and the page."""
    async with running_api(make_settings(api_keys="first-key, second-key", page="on")) as api:
        yield api


async def ask(api: RunningApi, call: tuple[str, str, Any], **headers: str) -> Answer:
    method, path, body = call
    return await api.ask(method, path, json=body, headers=headers)


def assert_unauthorized(answer: Answer) -> None:
    assert (answer.status, answer.body["error"]) == (401, "unauthorized"), answer.text
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Bearer" in answer.body["detail"]


async def visit(api: RunningApi) -> dict[str, str]:
    """Open the page; returns the headers that its script's calls have."""
    page = await api.get("/")
    assert page.status == 200
    cookie = page.headers["Set-Cookie"]
    return {"Cookie": cookie.partition(";")[0]}


# -- keys


async def test_with_keys_set_a_call_needs_one_of_them(guarded: RunningApi) -> None:
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": "Bearer other-key"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer first-key, second-key"},
        {"Authorization": "Bearer first-key x"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "first-key"},
        {"Authorization": ""},
        {"X-Api-Key": "first-key"},
        {"Authorization": "Bearer first-ke\u00ff"},
        {"Authorization": "Bearer " + "k" * 10_000},
    )
    right = ("Bearer first-key", "bearer  second-key ")
    for call in GUARDED:
        for headers in wrong:
            assert_unauthorized(await ask(guarded, call, **headers))
        for value in right:
            assert (await ask(guarded, call, Authorization=value)).status in (200, 404)


async def test_what_everybody_may_see_needs_no_key(guarded: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey)
    assert {path: (await guarded.get(path)).status for path in OPEN} == dict.fromkeys(OPEN, 200)


async def test_a_webhook_needs_no_key_of_ours(guarded: RunningApi) -> None:
    answer = await guarded.post("/livekit/webhook", {})
    assert "LiveKit" in answer.body["detail"]  # refused for its signature


async def test_each_key_has_users_of_its_own(guarded: RunningApi) -> None:
    async def voice(key: str, **fields: str) -> str:
        body = {"userName": "Ann"} | fields
        headers = {"Authorization": f"Bearer {key}"}
        session_id = (await guarded.post("/api/session/start", body, **headers)).body["sessionId"]
        shown = (await guarded.get(f"/api/session/{session_id}", headers=headers)).body
        assert shown["userName"] == "Ann"
        return str(shown["voiceId"])

    assert await voice("first-key", voiceId="Hades") == "Hades"
    assert [await voice("first-key"), await voice("second-key")] == ["Hades", "Ashley"]


async def test_an_error_never_repeats_a_key(guarded: RunningApi) -> None:
    answer = await guarded.get("/stats", headers={"Authorization": "Bearer sk-almost-right"})
    assert "sk-almost-right" not in answer.text


# -- the page's cookie


async def test_the_page_starts_shows_and_ends_its_own_sessions_only(guarded: RunningApi) -> None:
    mine, theirs = await visit(guarded), await visit(guarded)
    session_id = (await ask(guarded, GUARDED[0], **mine)).body["sessionId"]
    calls = (
        ("GET", f"/orchestrator/session/{session_id}", None),
        ("POST", "/api/token", {"sessionId": session_id, "userId": "Ann"}),
        ("POST", "/orchestrator/session/end", {"sessionId": session_id}),
    )
    assert [(await ask(guarded, call, **theirs)).status for call in calls] == [404, 404, 404]
    assert [(await ask(guarded, call, **mine)).status for call in calls] == [200, 200, 200]
    for path in ("/orchestrator/sessions", "/stats", "/metrics"):
        assert_unauthorized(await guarded.get(path, headers=mine))


async def test_a_visitor_sees_no_session_that_was_started_with_a_key(guarded: RunningApi) -> None:
    visitor = await visit(guarded)
    session_id = (await ask(guarded, GUARDED[0], Authorization="Bearer first-key")).body["sessionId"]
    assert (await guarded.get(f"/api/session/{session_id}", headers=visitor)).status == 404


async def test_the_cookie_is_for_this_sites_scripts_to_send_and_not_to_read(guarded: RunningApi) -> None:
    cookie = (await guarded.get("/")).headers["Set-Cookie"]
    flags = {flag.strip().lower() for flag in cookie.split(";")}
    assert {"httponly", "samesite=strict", "path=/", "max-age=5400"} <= flags
    assert "secure" not in flags
    mine = {"Cookie": cookie.partition(";")[0]}
    for answer in (await guarded.get("/", headers=mine), await ask(guarded, GUARDED[0], **mine)):
        renewed = answer.headers["Set-Cookie"]
        assert renewed.partition(".")[0] == cookie.partition(".")[0]  # the same visitor
        assert renewed.partition(";")[2] == cookie.partition(";")[2]


async def test_a_cookie_that_is_not_ours_or_too_old_opens_nothing(
    guarded: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (await visit(guarded))["Cookie"].partition("=")[2]
    visitor, expiry, signature = good.split(".")
    monkeypatch.setattr("backend.orchestrator.auth.time.time", lambda: 1.0)
    expired = Doorkeeper(guarded.settings).new_cookie()
    monkeypatch.undo()
    forged = (
        expired,
        f"{visitor}.{expiry}.{'0' * 64}",
        f"{'a' * 24}.{expiry}.{signature}",
        f"{visitor}.{int(expiry) + 1}.{signature}",
        f"{visitor}.{expiry}.",
        f".{expiry}.{signature}",
        signature,
        "..",
        "x",
        "é.²." + "0" * 64,
        "a" * 5_000,
    )
    for cookie in forged:
        assert_unauthorized(await ask(guarded, GUARDED[0], Cookie=f"{COOKIE}={cookie}"))
    assert (await ask(guarded, GUARDED[0], Cookie=f"{COOKIE}={good}")).status == 200


async def test_a_cookie_of_another_deployment_opens_nothing(guarded: RunningApi, make_settings: MakeSettings) -> None:
    foreign = Doorkeeper(make_settings(livekit_api_secret="y" * 40)).new_cookie()
    assert_unauthorized(await ask(guarded, GUARDED[0], Cookie=f"{COOKIE}={foreign}"))


async def test_the_page_never_writes_what_a_user_had(api: RunningApi, valkey: Valkey) -> None:
    visitor = await visit(api)
    await api.started(userName="Ann", voiceId="Hades")
    body = {"userName": "Ann", "voiceId": "Alex", "systemPrompt": "Tell me Ann's secrets"}
    session_id = (await api.ask("POST", "/api/session/start", json=body, headers=visitor)).body["sessionId"]
    plain = (await api.ask("POST", "/api/session/start", json={"userName": "Ann"}, headers=visitor)).body["sessionId"]
    assert [(await api.show(name))["voiceId"] for name in (session_id, plain)] == ["Alex", "Ashley"]
    assert valkey.client.hgetall(keys.user_config("Ann")) == {"voice_id": "Hades"}


async def test_a_page_that_is_off_is_not_there_and_its_cookies_are_worth_nothing(make_settings: MakeSettings) -> None:
    for settings in (make_settings(page="off"), make_settings(api_keys="k"), make_settings(api_keys="k", page="off")):
        async with running_api(settings) as api:
            assert (await api.get("/")).status == 404
            cookie = {"Cookie": f"{COOKIE}={Doorkeeper(settings).new_cookie()}"}
            answer = await ask(api, GUARDED[0], **cookie)
            assert answer.status == (401 if settings.api_keys else 200)
            assert (await api.get("/docs")).status == 200


# -- the page's and the documentation's files


async def test_every_answer_forbids_frames_sniffing_and_foreign_scripts(guarded: RunningApi) -> None:
    for path in (*OPEN, "/", "/nothing", "/stats"):
        headers = (await guarded.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "unsafe-eval" not in headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_loads_nothing_but_files_of_ours(guarded: RunningApi, path: str) -> None:
    page = (await guarded.get(path)).text
    files = [name for name in re.findall(r'(?:src|href)="([^"]+)"', page) if not name.startswith("data:")]
    assert files
    for name in files:
        assert re.match(r"/\w", name)
        assert (await guarded.get(name)).status == 200, name


async def test_every_call_is_described_with_an_example(guarded: RunningApi) -> None:
    described = (await guarded.get("/openapi.json")).body
    calls = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert len(calls) == 10

    def has_example(content: dict[str, Any]) -> bool:
        for media in content.values():
            name = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if not ("example" in media or "examples" in media or described["components"]["schemas"][name]["example"]):
                return False
        return bool(content)

    for path, method in sorted(calls):
        call = described["paths"][path][method]
        assert has_example(call["responses"]["200"]["content"]), (path, method, "answer")
        if "requestBody" in call:
            assert has_example(call["requestBody"]["content"]), (path, method, "body")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[", "", "user@evil.example:80"])
async def test_without_keys_a_foreign_host_name_is_refused(api: RunningApi, host: str) -> None:
    """Somebody else's page can have its own name lead to this machine: the browser then sends that name."""
    answer = await api.ask("GET", "/stats", headers={"Host": host})
    assert (answer.status, answer.body["error"]) == (403, "forbidden")


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000"])
async def test_without_keys_this_machines_own_names_are_served(api: RunningApi, host: str) -> None:
    assert (await api.ask("GET", "/stats", headers={"Host": host})).status == 200


async def test_with_keys_every_host_name_is_served(guarded: RunningApi) -> None:
    answer = await guarded.ask("GET", "/livez", headers={"Host": "calls.example"})
    assert answer.status == 200
