"""A wrong variable stops the program with one line that names it, what it got and what it takes."""

from pathlib import Path
from typing import Any

import pytest

from backend.common.settings import (
    PROGRAMS,
    ApiSettings,
    CommonSettings,
    LauncherSettings,
    LocalSettings,
    WorkerSettings,
    read,
)

SECRET = "s3cret-" * 6
KNOWN = {"LIVEKIT_URL": "ws://localhost:7880", "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": SECRET}
EVERYWHERE = "0.0.0.0"  # noqa: S104  # what is tested is when it is taken
VENDORS = ("ASSEMBLY_API_KEY", "GROQ_API_KEY", "INWORLD_API_KEY")


@pytest.fixture(autouse=True)
def _nothing_but_what_the_test_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for program in PROGRAMS:
        for field in program.model_fields.values():
            monkeypatch.delenv(str(field.validation_alias), raising=False)
    for name, value in KNOWN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def complaint(capsys: pytest.CaptureFixture[str], program: type[CommonSettings]) -> str:
    """Read settings that are wrong; returns the one line that the program ends with."""
    with pytest.raises(SystemExit) as ended:
        read(program)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    "case",
    [
        (ApiSettings, "PORT", "http", "integer"),
        (ApiSettings, "PORT", "0", "greater than or equal to 1"),
        (ApiSettings, "PORT", "65536", "less than or equal to 65535"),
        (ApiSettings, "PAGE", "yes", "'auto', 'on' or 'off'"),
        (ApiSettings, "MAX_WAITING", "-1", "greater than or equal to 0"),
        (ApiSettings, "MAX_SESSIONS_PER_USER", "0", "greater than or equal to 1"),
        (ApiSettings, "LIVEKIT_URL", "localhost:7880", "ws:// or wss://"),
        (ApiSettings, "LIVEKIT_PUBLIC_URL", "ftp://x", "ws:// or wss://"),
        (ApiSettings, "REDIS_URL", "localhost:6379", "redis://localhost:6379/0"),
        (ApiSettings, "REDIS_URL", "unix:///tmp/redis.sock", "redis://localhost:6379/0"),
        (ApiSettings, "REDIS_URL", "redis://h:6379/zero", "redis://localhost:6379/0"),
        (ApiSettings, "BROKER_URL", "amqp://h", "redis://localhost:6379/0"),
        (ApiSettings, "PREWARM_POOL_SIZE", "many", "integer"),
        (ApiSettings, "SESSION_TIMEOUT", "30 min", "integer"),
        (ApiSettings, "SESSION_TIMEOUT", "30", "greater than or equal to 1000"),
        (ApiSettings, "BOT_STARTUP_TIMEOUT", "0", "greater than or equal to 1"),
        (ApiSettings, "LOG_FORMAT", "xml", "'console' or 'json'"),
        (ApiSettings, "LOG_LEVEL", "loud", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        (ApiSettings, "HOST_ID", "a/b", "a host name"),
        (ApiSettings, "HOST_ID", "h" * 64, "a host name"),
        (WorkerSettings, "WORKER_CONCURRENCY", "0", "greater than or equal to 1"),
        (LauncherSettings, "MAX_BOTS", "0", "greater than or equal to 1"),
        (LauncherSettings, "AGENT_START_METHOD", "thread", "'fork' or 'spawn'"),
        (LauncherSettings, "VOICE", "loud", "'auto', 'demo' or 'vendors'"),
        (LauncherSettings, "CALLER_GRACE", "16", "less than or equal to 15"),
        (LauncherSettings, "LOG_RETENTION_DAYS", "0", "greater than or equal to 1"),
        (LocalSettings, "PORT", "x", "integer"),
    ],
    ids=lambda case: f"{case[1]}={case[2][:20]}",
)
def test_a_wrong_variable_is_named_with_what_it_got_and_takes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[type[CommonSettings], str, str, str],
) -> None:
    program, name, value, takes = case
    monkeypatch.setenv(name, value)
    line = complaint(capsys, program)
    assert line.startswith(f"{name} got {value!r}: ")
    assert takes in line


@pytest.mark.parametrize("name", list(KNOWN))
def test_a_variable_that_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name)
    assert complaint(capsys, ApiSettings).startswith(f"{name} is not set: LiveKit ")


def test_an_empty_variable_is_as_if_it_were_not_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "")
    assert read(ApiSettings).port == 8000
    monkeypatch.setenv("LIVEKIT_API_SECRET", "")
    assert complaint(capsys, ApiSettings).startswith("LIVEKIT_API_SECRET is not set")


def test_every_wrong_variable_has_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("MAX_WAITING", "x")
    with pytest.raises(SystemExit):
        read(ApiSettings)
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["PORT", "MAX_WAITING"]


def test_no_complaint_shows_a_password(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (f"http://u:{SECRET}@h:1", f"redis:/:{SECRET}@h", f"u:{SECRET}@h"):
        monkeypatch.setenv("REDIS_URL", wrong)
        assert SECRET not in complaint(capsys, ApiSettings)


def test_no_setting_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEYS", *VENDORS):
        monkeypatch.setenv(name, SECRET)
    for program in (ApiSettings, WorkerSettings, LauncherSettings):
        settings = read(program)
        assert SECRET not in f"{settings!r} {settings} {settings.model_dump()}"


# -- units and defaults


def test_session_timeout_is_milliseconds_and_bot_startup_timeout_seconds() -> None:
    settings = read(ApiSettings)
    assert (settings.session_timeout_ms, settings.bot_startup_timeout_seconds) == (1_800_000, 30)


def test_the_environment_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=8001\nMAX_WAITING=7\nUNKNOWN=1\n# MAX_SESSIONS_PER_USER=1\n")
    monkeypatch.setenv("PORT", "8002")
    settings = read(ApiSettings)
    assert (settings.port, settings.max_waiting, settings.max_sessions_per_user) == (8002, 7, 100)


def test_a_wrong_line_of_the_env_file_is_named_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=eight\n")
    assert complaint(capsys, ApiSettings).startswith("PORT got 'eight': ")


def test_settings_do_not_change() -> None:
    settings: Any = read(ApiSettings)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_the_launcher_knows_neither_livekits_secret_nor_the_api_keys() -> None:
    fields = {str(field.validation_alias) for field in LauncherSettings.model_fields.values()}
    assert not fields & {"LIVEKIT_API_SECRET", "LIVEKIT_API_KEY", "API_KEYS"}


def test_variables_of_the_same_name_mean_the_same_in_every_program() -> None:
    seen: dict[str, Any] = {}
    for program in PROGRAMS:
        for field in program.model_fields.values():
            name = str(field.validation_alias)
            assert seen.setdefault(name, field.description) == field.description, name


# -- who may reach the API


@pytest.mark.parametrize(
    ("keys", "host", "binds"),
    [
        ("", "", "127.0.0.1"),
        (" , ", "", "127.0.0.1"),
        ("", "localhost", "localhost"),
        ("", "::1", "::1"),
        ("k", "", EVERYWHERE),
        ("k", "10.0.0.1", "10.0.0.1"),
    ],
)
def test_without_keys_only_this_machine_reaches_the_api(
    monkeypatch: pytest.MonkeyPatch, keys: str, host: str, binds: str
) -> None:
    monkeypatch.setenv("API_KEYS", keys)
    monkeypatch.setenv("HOST", host)
    assert read(ApiSettings).bind_address == binds


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "10.0.0.1", "example.com"])
def test_a_host_that_others_reach_is_refused_without_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("HOST", host)
    line = complaint(capsys, ApiSettings)
    assert f"HOST={host}" in line
    assert "set API_KEYS" in line


@pytest.mark.parametrize(
    ("keys", "page", "is_served"),
    [("", "auto", True), ("k", "auto", False), ("k", "on", True), ("", "off", False), ("k", "off", False)],
)
def test_with_keys_the_page_is_off_unless_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, keys: str, page: str, is_served: bool
) -> None:
    monkeypatch.setenv("API_KEYS", keys)
    monkeypatch.setenv("PAGE", page)
    assert read(ApiSettings).has_page is is_served


# -- the voice


@pytest.mark.parametrize("unset", VENDORS)
def test_some_but_not_all_vendor_keys_are_an_error_that_names_the_missing_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, unset: str
) -> None:
    for name in VENDORS:
        if name != unset:
            monkeypatch.setenv(name, SECRET)
    line = complaint(capsys, LauncherSettings)
    assert line.startswith(f"{unset} not set")
    assert SECRET not in line
    monkeypatch.setenv("VOICE", "demo")
    assert read(LauncherSettings).is_demo_voice


def test_the_voice_follows_the_keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(LauncherSettings).is_demo_voice
    monkeypatch.setenv("VOICE", "vendors")
    assert "ASSEMBLY_API_KEY, GROQ_API_KEY, INWORLD_API_KEY" in complaint(capsys, LauncherSettings)
    for name in VENDORS:
        monkeypatch.setenv(name, SECRET)
    assert not read(LauncherSettings).is_demo_voice
    monkeypatch.setenv("VOICE", "auto")
    assert not read(LauncherSettings).is_demo_voice


def test_silence_is_asked_about_before_it_ends_the_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SILENCE_ASK", "60")
    assert complaint(capsys, LauncherSettings) == "SILENCE_ASK must be less than SILENCE_END"
