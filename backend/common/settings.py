"""Every environment variable: typed, with its unit, checked once at start.

One frozen class per program; a program sees only what its class lists. ``.env`` in the
working directory is read, the environment wins. ``read`` is the way in.
"""

import re
import socket
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import BeforeValidator, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.common.door_settings import DoorSettings
from backend.common.host_settings import HostSettings
from backend.common.trace_settings import TraceSettings
from backend.common.variables import HostId, HttpUrl, RedisUrl, WebUrl, has_package, split, variable

AnySettings = TypeVar("AnySettings", bound=BaseSettings)


class CommonSettings(TraceSettings):
    """What every program of the house needs."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    redis_url: RedisUrl = variable(
        "REDIS_URL", "Redis or Valkey: the state of all sessions", "redis://localhost:6379/0"
    )
    host_id: HostId = variable("HOST_ID", "this host's name in the fleet", default_factory=socket.gethostname)
    run_dir: Path = variable("RUN_DIR", "folder for sockets, state files and embedded servers", Path(".run"))
    log_dir: Path = variable("LOG_DIR", "folder for one log file per session", Path(".run/logs/agents"))
    log_format: Literal["console", "json"] = variable("LOG_FORMAT", "console or json", "console")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = variable(
        "LOG_LEVEL", "least level that is logged", "INFO"
    )
    bot_startup_timeout_seconds: int = variable(
        "BOT_STARTUP_TIMEOUT", "seconds a session may wait for an agent", 30, ge=1, le=600
    )
    session_timeout_ms: int = variable(
        "SESSION_TIMEOUT", "longest session, milliseconds", 1_800_000, ge=1_000, le=24 * 3_600_000
    )

    @property
    def host_dir(self) -> Path:
        """This host's folder: the launcher's lock and socket, its agents' state files."""
        return self.run_dir / self.host_id

    @property
    def launcher_socket(self) -> Path:
        """Where the launcher takes commands."""
        return self.host_dir / "launcher.sock"


class LauncherSettings(HostSettings, CommonSettings):
    """The launcher and, by inheritance of its memory, the agents. No LiveKit secret, no API keys."""

    livekit_url: WebUrl = variable("LIVEKIT_URL", "LiveKit server, ws:// or wss://; make run starts one when unset")
    max_bots: int = variable("MAX_BOTS", "most agents on this host, of any state", 50, ge=1, le=10_000)
    agent_bot: str = variable(
        "AGENT_BOT", "what agents run: voice, tone (benchmarks) or module:function", "voice", min_length=1
    )
    agent_start_method: Literal["fork", "spawn"] = variable(
        "AGENT_START_METHOD",
        "fork from a warm image, or spawn a fresh interpreter (the default on macOS)",
        "spawn" if sys.platform == "darwin" else "fork",
    )
    drain_timeout_seconds: float = variable(
        "DRAIN_TIMEOUT", "seconds that calls may go on after the launcher was told to stop", 2.0, ge=0, le=86_400
    )
    log_retention_days: int = variable(
        "LOG_RETENTION_DAYS", "days that a session's log file is kept", 7, ge=1, le=3_650
    )

    voice: Literal["auto", "demo", "vendors"] = variable(
        "VOICE", "auto: the vendors when their keys are set, else demo; demo: the voice without keys", "auto"
    )
    assembly_api_key: SecretStr | None = variable("ASSEMBLY_API_KEY", "AssemblyAI, speech to text", None)
    groq_api_key: SecretStr | None = variable("GROQ_API_KEY", "Groq, the language model", None)
    inworld_api_key: SecretStr | None = variable("INWORLD_API_KEY", "Inworld, text to speech", None)
    assembly_url: WebUrl = variable(
        "ASSEMBLY_URL", "AssemblyAI's streaming address", "wss://streaming.assemblyai.com/v3/ws"
    )
    groq_url: WebUrl = variable("GROQ_URL", "Groq's OpenAI-compatible base address", "https://api.groq.com/openai/v1")
    groq_model: str = variable("GROQ_MODEL", "the language model's name", "llama-3.3-70b-versatile")
    inworld_url: WebUrl = variable(
        "INWORLD_URL", "Inworld's streaming address", "wss://api.inworld.ai/tts/v1/voice:streamBidirectional"
    )
    speech_to_text: str = variable("SPEECH_TO_TEXT", "provider by name, from backend/agent/voices", "assemblyai")
    language_model: str = variable("LANGUAGE_MODEL", "provider by name, from backend/agent/voices", "groq")
    text_to_speech: str = variable("TEXT_TO_SPEECH", "provider by name, from backend/agent/voices", "inworld")

    opening_line_cache_mb: int = variable(
        "OPENING_LINE_CACHE_MB", "most megabytes of spoken opening lines on disk; 0 keeps none", 64, ge=0, le=100_000
    )
    opening_line_cache_for: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = variable(
        "OPENING_LINE_CACHE_FOR", "voices besides demo whose terms allow keeping their speech, separated by commas", ()
    )

    caller_grace_seconds: float = variable(
        "CALLER_GRACE", "seconds a caller who left has to come back", 10.0, ge=0, le=15
    )
    nobody_came_seconds: float = variable(
        "NOBODY_CAME", "seconds an agent waits for a caller who never came", 30.0, ge=1, le=240
    )
    silence_ask_seconds: float = variable("SILENCE_ASK", "seconds of silence before the agent asks", 30.0, ge=1)
    silence_end_seconds: float = variable("SILENCE_END", "seconds of silence that end a call", 60.0, ge=2)

    @model_validator(mode="after")
    def _vendor_keys_come_together(self) -> "LauncherSettings":
        keys = {
            "ASSEMBLY_API_KEY": self.assembly_api_key,
            "GROQ_API_KEY": self.groq_api_key,
            "INWORLD_API_KEY": self.inworld_api_key,
        }
        missing = [name for name, key in keys.items() if key is None]
        if self.voice == "vendors" and missing:
            raise ValueError(f"VOICE=vendors needs {', '.join(missing)}: set them, or VOICE=demo")
        if self.voice == "auto" and missing and len(missing) < len(keys):
            raise ValueError(f"{', '.join(missing)} not set, but other vendor keys are: set all three, or VOICE=demo")
        return self

    @field_validator("agent_bot")
    @classmethod
    def _bot_exists(cls, value: str) -> str:
        module, colon, function = value.partition(":")
        if value not in ("voice", "tone") and not (colon and function and has_package(module)):
            raise ValueError("voice, tone, or module:function of a module that can be imported")
        return value

    @model_validator(mode="after")
    def _silence_is_asked_before_it_ends(self) -> "LauncherSettings":
        if self.silence_ask_seconds >= self.silence_end_seconds:
            raise ValueError("SILENCE_ASK must be less than SILENCE_END")
        return self

    @property
    def is_demo_voice(self) -> bool:
        """Whether agents speak without any vendor."""
        return self.voice == "demo" or (self.voice == "auto" and self.groq_api_key is None)


class OrchestratorSettings(CommonSettings):
    """What the API and the Celery programs share."""

    livekit_url: WebUrl = variable("LIVEKIT_URL", "LiveKit server, ws:// or wss://; make run starts one when unset")
    livekit_api_key: str = variable("LIVEKIT_API_KEY", "LiveKit API key", min_length=1)
    livekit_api_secret: SecretStr = variable(
        "LIVEKIT_API_SECRET", "LiveKit API secret; LiveKit wants 32 characters or more"
    )
    broker_url: RedisUrl | None = variable("BROKER_URL", "Celery's Redis; unset: the next database of REDIS_URL", None)
    deployment_id: str | None = variable(
        "DEPLOYMENT_ID",
        "marks our rooms on a LiveKit server that others use too; unset: a mark that follows from REDIS_URL",
        None,
        min_length=1,
        max_length=64,
    )
    prewarm_in_room: bool = variable(
        "PREWARM_IN_ROOM", "warm agents wait in a room of their own; false parks them outside", True
    )
    prewarm_pool_size: int = variable("PREWARM_POOL_SIZE", "warm agents wanted per host", 3, ge=0, le=1_000)
    prewarm_pool_max: int = variable(
        "PREWARM_POOL_MAX", "most warm agents per host when many callers come", 16, ge=0, le=1_000
    )
    python_script_path: str | None = variable(
        "PYTHON_SCRIPT_PATH", "accepted and ignored: agents are forked, no script is started", None
    )


class ApiSettings(DoorSettings, OrchestratorSettings):
    """The REST API."""

    livekit_public_url: WebUrl | None = variable(
        "LIVEKIT_PUBLIC_URL", "the LiveKit address that browsers are told; unset: LIVEKIT_URL", None
    )
    port: int = variable("PORT", "port of the API and the page", 8000, ge=1, le=65_535)
    max_waiting: int = variable("MAX_WAITING", "most sessions in the waiting line", 20, ge=0, le=100_000)
    max_sessions_per_user: int = variable(
        "MAX_SESSIONS_PER_USER", "most sessions of one user at a time", 100, ge=1, le=100_000
    )

    @property
    def public_url(self) -> str:
        """The LiveKit address for callers."""
        return self.livekit_public_url or self.livekit_url


class WorkerSettings(OrchestratorSettings):
    """The Celery worker of a host, and beat."""

    worker_concurrency: int = variable("WORKER_CONCURRENCY", "processes of the Celery worker", 2, ge=1, le=64)


class LocalSettings(CommonSettings):
    """``make run``: what is set decides what is embedded."""

    redis_url: RedisUrl | None = variable(  # type: ignore[assignment]  # unset means: start one here
        "REDIS_URL", "Redis or Valkey: the state of all sessions", None
    )
    livekit_url: WebUrl | None = variable(
        "LIVEKIT_URL", "LiveKit server, ws:// or wss://; make run starts one when unset", None
    )
    port: int = variable("PORT", "port of the API and the page", 8000, ge=1, le=65_535)


class CallerSettings(BaseSettings):
    """``greenroom call``, which is no program of the house."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    greenroom_url: HttpUrl = variable("GREENROOM_URL", "the Greenroom that is called", "http://127.0.0.1:8000")
    greenroom_api_key: SecretStr | None = variable("GREENROOM_API_KEY", "one of its API_KEYS, where it has any", None)


PROGRAMS: tuple[type[BaseSettings], ...] = (
    LauncherSettings,
    ApiSettings,
    WorkerSettings,
    LocalSettings,
    CallerSettings,
)


def read(program: type[AnySettings]) -> AnySettings:
    """Read the environment, or end the program with one line per wrong variable (exit code 2)."""
    try:
        return program()
    except ValidationError as error:
        _stop(program, error)


def _stop(program: type[BaseSettings], error: ValidationError) -> NoReturn:
    for problem in error.errors(include_context=False, include_url=False):
        print(explain(program, problem), file=sys.stderr)  # noqa: T201  # logs are not configured yet
    raise SystemExit(2)


def explain(program: type[BaseSettings], problem: ErrorDetails) -> str:
    """Say in one line which variable is wrong, what it got and what it takes; never a secret's value."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    field = next((f for f in program.model_fields.values() if f.validation_alias == name), None)
    what = field.description if field else ""
    if problem["type"] == "missing":
        return f"{name} is not set: {what}"
    is_secret = "SecretStr" in str(field.annotation) if field else True
    # An address may have a password in front of its host.
    got = "a wrong value" if is_secret else re.sub(r".*@", "'***@", repr(problem["input"]))
    return f"{name} got {got}: {message[:1].lower()}{message[1:]} ({what})"
