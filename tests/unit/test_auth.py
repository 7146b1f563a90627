"""Keys and cookies: who calls."""

from typing import Any

import pytest

from backend.common.settings import ApiSettings
from backend.orchestrator.auth import COOKIE_SECONDS, Client, Doorkeeper
from backend.orchestrator.errors import UnauthorizedError

SECRET = "s" * 40


def doorkeeper(**changes: Any) -> Doorkeeper:
    known = {"livekit_url": "ws://x", "livekit_api_key": "k", "livekit_api_secret": SECRET, "api_keys": ""}
    return Doorkeeper(ApiSettings(_env_file=None, **(known | changes)))


def test_without_keys_everybody_is_trusted_and_has_one_scope() -> None:
    assert doorkeeper().admit(None, None) == Client(scope="")
    assert doorkeeper().admit("Bearer anything", None) == Client(scope="")


def test_each_key_has_a_scope_that_does_not_show_it() -> None:
    keeper = doorkeeper(api_keys="one, two")
    scopes = [keeper.admit(f"Bearer {key}", None).scope for key in ("one", "two", "one")]
    assert scopes[0] == scopes[2] != scopes[1]
    assert not any(key in scope for key in ("one", "two") for scope in scopes)
    assert doorkeeper(api_keys="two,one").admit("Bearer one", None).scope == scopes[0]


@pytest.mark.parametrize("sent", [None, "", "Bearer", "Bearer ", "Bearer three", "Basic one", "one", "Bearer one,two"])
def test_what_is_no_key_is_not_admitted(sent: str | None) -> None:
    with pytest.raises(UnauthorizedError):
        doorkeeper(api_keys="one,two").admit(sent, None)


def test_a_wrong_key_is_not_made_right_by_a_cookie() -> None:
    keeper = doorkeeper(api_keys="one", page="on")
    with pytest.raises(UnauthorizedError):
        keeper.admit("Bearer wrong", keeper.new_cookie())


def test_a_visitor_of_the_page_is_known_again_and_not_trusted_where_there_are_keys() -> None:
    keeper = doorkeeper(api_keys="one", page="on")
    cookie = keeper.new_cookie()
    client = keeper.admit(None, cookie)
    assert (client.page, client.is_trusted) == (keeper.read_cookie(cookie), False)
    assert client.page
    with_key = keeper.admit("Bearer one", cookie)
    assert (with_key.page, with_key.is_trusted) == (client.page, True)


def test_whose_cookie_is_too_old_is_told_to_reload_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, now = doorkeeper(api_keys="one", page="on"), 1_762_018_728.0
    monkeypatch.setattr("backend.orchestrator.auth.time.time", lambda: now)
    cookie = keeper.new_cookie()
    now += 10 * COOKIE_SECONDS
    with pytest.raises(UnauthorizedError, match="reload the page"):
        keeper.admit(None, cookie)


def test_a_cookie_can_be_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, now = doorkeeper(), 1_762_018_728.0
    monkeypatch.setattr("backend.orchestrator.auth.time.time", lambda: now)
    cookie = keeper.new_cookie()
    now += 600
    renewed = keeper.new_cookie(keeper.read_cookie(cookie))
    assert keeper.read_cookie(renewed) == keeper.read_cookie(cookie)
    assert int(renewed.split(".")[1]) == int(cookie.split(".")[1]) + 600


def test_every_visitor_is_another() -> None:
    keeper = doorkeeper()
    assert len({keeper.read_cookie(keeper.new_cookie()) for _ in range(100)}) == 100


def test_a_cookie_is_good_for_an_hour_and_the_longest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, now = doorkeeper(session_timeout_ms=1_800_000), 1_762_018_728.0
    monkeypatch.setattr("backend.orchestrator.auth.time.time", lambda: now)
    cookie = keeper.new_cookie()
    now += COOKIE_SECONDS + 1_800 - 1
    assert keeper.read_cookie(cookie)
    now += 1
    assert keeper.read_cookie(cookie) == ""


def test_a_cookie_that_was_changed_anywhere_is_worth_nothing() -> None:
    keeper = doorkeeper()
    cookie = keeper.new_cookie()
    for place in range(len(cookie)):
        changed = cookie[:place] + ("0" if cookie[place] != "0" else "1") + cookie[place + 1 :]
        assert keeper.read_cookie(changed) == ""
        assert keeper.read_cookie(cookie[:place]) == ""
    assert doorkeeper(livekit_api_secret="t" * 40).read_cookie(cookie) == ""


@pytest.mark.parametrize("cookie", ["", ".", "..", "...", "é.é.é", "a.²." + "0" * 64])
def test_what_is_no_cookie_is_no_error(cookie: str) -> None:
    assert doorkeeper().read_cookie(cookie) == ""


def test_where_the_page_is_off_its_cookies_are_worth_nothing() -> None:
    cookie = doorkeeper(page="on").new_cookie()
    assert doorkeeper(page="off").admit(None, cookie).page == ""
    with pytest.raises(UnauthorizedError):
        doorkeeper(api_keys="one").admit(None, cookie)
