"""The API keys: how they are written, found, and changed while the program runs."""

from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from pydantic import ValidationError

from backend.common.settings import ApiSettings
from backend.orchestrator import keyring
from backend.orchestrator.keyring import Keyring, read_key

LONG = "k9-QmVhcmVyIHRva2Vu-1"


def settings(**changes: Any) -> ApiSettings:
    known = {"livekit_url": "ws://x", "livekit_api_key": "k", "livekit_api_secret": "s" * 40}
    return ApiSettings(_env_file=None, **(known | changes))


def name_of(ring: Keyring, shown: str) -> str | None:
    key = ring.find(shown)
    return key.name if key else None


@pytest.fixture
def said() -> Any:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(f"{message.record['message']} {message.record['extra']}"))
    yield lines
    logger.remove(sink)


@pytest.fixture
def _always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "LOOK_SECONDS", 0.0)


def test_a_key_may_have_a_name() -> None:
    ring = Keyring(settings(api_keys=f"plain, web={LONG},mobile-app={LONG}2"))
    assert [name_of(ring, shown) for shown in ("plain", LONG, f"{LONG}2")] == ["", "web", "mobile-app"]
    assert [ring.find(shown) for shown in (f"web={LONG}", "web", "", f"{LONG}3")] == [None] * 4


@pytest.mark.parametrize("plain", ["dGVzdA==", "a=b", "web=short", "=" * 30, "9=" + LONG, "two words=" + LONG])
def test_a_plain_key_may_hold_an_equals_sign(plain: str) -> None:
    ring = Keyring(settings(api_keys=plain))
    assert name_of(ring, plain) == ""
    assert ring.find(plain.partition("=")[2]) is None


def test_a_key_is_shown_by_its_name_and_the_beginning_of_its_hash_only() -> None:
    ring = Keyring(settings(api_keys=f"web={LONG},{LONG}2"))
    named, plain = ring.find(LONG), ring.find(f"{LONG}2")
    assert str(named).startswith("web:")
    assert len(str(plain)) == 8
    assert LONG not in f"{named} {plain} {named!r} {plain!r} {vars(ring)}"
    assert read_key(LONG).digest == read_key(f"other={LONG}").digest


@pytest.mark.usefixtures("_always_looks")
def test_a_file_of_keys_is_read_again_when_it_changes(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\nweb={LONG}\n\nplain#1\n")
    ring = Keyring(settings(api_keys="fixed", api_keys_file=file))
    assert [name_of(ring, shown) for shown in ("fixed", LONG, "plain#1", "# ours", "")] == ["", "web", "", None, None]
    file.write_text(f"web={LONG}-new\n")
    assert [name_of(ring, shown) for shown in ("fixed", LONG, "plain#1", f"{LONG}-new")] == ["", None, None, "web"]
    new = tmp_path / "new"
    new.write_text(f"app={LONG}-new\n")
    new.replace(file)  # as long as before, and put in its place
    assert name_of(ring, f"{LONG}-new") == "app"
    assert len(said) == 3
    assert LONG not in " ".join(said)


@pytest.mark.usefixtures("_always_looks")
def test_a_file_that_was_emptied_lets_nobody_in_and_one_that_is_gone_changes_nothing(
    tmp_path: Path, said: list[str]
) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    ring = Keyring(settings(api_keys_file=file))
    file.unlink()
    assert [name_of(ring, "one") for _ in range(3)] == [""] * 3
    assert [line for line in said if "cannot be read" in line] == said[1:2]  # said once
    file.write_bytes(b"\xff\xfe")
    assert name_of(ring, "one") == ""
    file.write_text("")
    assert ring.find("one") is None
    assert settings(api_keys_file=file).has_keys


def test_the_file_is_looked_at_once_a_second_at_most(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    ring = Keyring(settings(api_keys_file=file))
    assert ring.find("one")
    file.write_text("two, longer\n")
    assert ring.find("one")  # calls do not wait for a disk each


def test_a_file_that_cannot_be_read_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="not point to a file"):
        settings(api_keys_file=tmp_path / "none")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ValidationError, match="cannot be read"):
        settings(api_keys_file=tmp_path / "keys")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("rate_limit", value) for value in ("fast", "10", "0/second", "10/fortnight", "10/second;", "-1/second")),
        *(("trusted_proxies", value) for value in ("proxy", "10.0.0.1/8", "*", "10.0.0.256")),
        *(
            ("cors_origins", value)
            for value in ("*", "https://*.example.com", "app.example.com", "https://a.example/x")
        ),
    ],
)
def test_what_would_not_work_is_refused_at_the_start(name: str, wrong: str) -> None:
    with pytest.raises(ValidationError):
        settings(**{name: wrong})
