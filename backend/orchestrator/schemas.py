"""What goes in and out of the REST API, in camelCase, with an example for every call."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

NAME_LENGTH = 100
OPENING_LENGTH = 500
PROMPT_LENGTH = 32_768
METADATA_BYTES = 4_096

EXAMPLE_ID = "session_1762018728198_9f2c4e6a8b0d1f35"
EXAMPLE_SESSION: dict[str, JsonValue] = {
    "sessionId": EXAMPLE_ID,
    "roomName": EXAMPLE_ID,
    "status": "ended",
    "userName": "user_456",
    "voiceId": "Ashley",
    "agentId": "a_1762018727911_5d1f_1",
    "agentPid": 4711,
    "hostId": "host-1",
    "generation": 1,
    "createdAt": "2025-11-01T17:38:48.198Z",
    "startedAt": "2025-11-01T17:38:48.631Z",
    "endedAt": "2025-11-01T17:40:53.702Z",
    "endReason": "client_end",
    "endedBy": "client",
    "durationSeconds": 125,
    "durationMinutes": 3,
}
EXAMPLE_HEALTH = {
    "status": "ok",
    "components": {name: {"state": "ok", "latencyMs": 0.6} for name in ("redis", "broker", "livekit", "hosts")},
}
EXAMPLE_STATS = {
    "sessions": {"waiting": 0, "assigned": 1, "live": 4, "endedToday": 120},
    "agents": {"starting": 1, "warm": 2, "busy": 5, "stopping": 0},
    "pool": {"target": 3, "warm": 2, "starting": 1, "capacity": 50},
    "waiting": {"count": 0, "oldestSeconds": 0.0},
    "hosts": [{"hostId": "host-1", "capacity": 50, "warm": 2, "busy": 5, "lastSeenSeconds": 0.7}],
    "redis": {"connected": True, "latencyMs": 0.3, "usedMemoryBytes": 1_900_000},
    "queues": {"control": 0, "host.host-1": 0},
}


EXAMPLE_METRICS = """\
# HELP greenroom_up whether the component answered this scrape in time
# TYPE greenroom_up gauge
greenroom_up{component="redis"} 1.0
greenroom_up{component="broker"} 1.0
# HELP greenroom_sessions unended sessions
# TYPE greenroom_sessions gauge
greenroom_sessions{state="waiting"} 0.0
greenroom_sessions{state="assigned"} 1.0
greenroom_sessions{state="live"} 4.0
"""


# A lone surrogate is no character: no store and no voice could take it.
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _is_text(value: str) -> str:
    if _NOT_TEXT.search(value):
        raise ValueError("leave out control characters and lone surrogates")
    return value


def _is_line(value: str) -> str:
    if _NOT_LINE.search(value):
        raise ValueError("leave out control characters, line breaks and lone surrogates")
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _is_small(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, RecursionError):  # UnicodeEncodeError is a ValueError
        raise ValueError("must be plain JSON without NaN, infinities and lone surrogates") from None
    if size > METADATA_BYTES:
        raise ValueError(f"has {size} bytes as JSON: keep it under {METADATA_BYTES}")
    return value


Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH), AfterValidator(_is_line)]
# The length first: after a validator of ours the limit would be one of "items".
OpeningLine = Annotated[str, Field(max_length=OPENING_LENGTH), AfterValidator(_is_text)]
Prompt = Annotated[str, Field(max_length=PROMPT_LENGTH), AfterValidator(_is_text)]
SessionId = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH), AfterValidator(_is_line)]


class Schema(BaseModel):
    """camelCase outside, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class Reply(Schema):
    """What we answer, made in our own words."""

    model_config = ConfigDict(populate_by_name=True)


class StartRequest(Schema):
    """Start a session."""

    user_name: Name = Field(description="who calls; shown in the room")
    voice_id: Name | None = Field(None, description="the voice; else the user's last one, else Ashley")
    opening_line: OpeningLine | None = Field(None, description="spoken first")
    system_prompt: Prompt | None = Field(None, description="who the agent is")
    failover_line: OpeningLine | None = Field(
        None, description="spoken by an agent that takes over from one that was lost; an empty one says nothing"
    )
    user_id: Name | None = Field(None, description="your id of the user; else userName. Needed to come back")
    max_duration_seconds: int | None = Field(None, ge=1, description="ends the call; at most SESSION_TIMEOUT")
    metadata: Annotated[dict[str, JsonValue], AfterValidator(_is_small)] | None = Field(
        None, description="kept with the session's record, at most 4 KiB"
    )

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "userName": "user_456",
                "voiceId": "Ashley",
                "openingLine": "Hello! Welcome!",
                "systemPrompt": "You are a technical support agent. Give clear, step-by-step instructions.",
                "maxDurationSeconds": 600,
            }
        }
    )


class StartResponse(Reply):
    """A session and the caller's way into its room."""

    success: bool = True
    session_id: str
    token: str | None = Field(description="join serverUrl with it within 120 s; null once the session ended")
    server_url: str
    room_name: str
    message: str
    status: Literal["waiting", "assigned", "live", "ended"]

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "success": True,
                "sessionId": EXAMPLE_ID,
                "token": "<token>",
                "serverUrl": "wss://livekit.example.com",
                "roomName": EXAMPLE_ID,
                "message": "An agent is with you.",
                "status": "assigned",
            }
        }
    )


class EndRequest(Schema):
    """End a session."""

    session_id: SessionId

    model_config = ConfigDict(json_schema_extra={"example": {"sessionId": EXAMPLE_ID}})


class EndDetails(BaseModel):
    """The figures of an ended session, the same in every answer. Names as the first version of this API had them."""

    session_id: str
    celery_task_revoked: bool = Field(description="no task can act for this session any more")
    process_killed: bool = Field(description="its agent, if any, was told to go and is watched until it is gone")
    redis_cleaned: bool = Field(description="it is out of the line and of the open sessions")
    duration_seconds: int = Field(alias="durationSeconds")
    duration_minutes: int = Field(alias="durationMinutes", description="begun minutes")
    errors: list[str] = []

    model_config = ConfigDict(populate_by_name=True)


class EndResponse(Reply):
    """What the end came to."""

    success: bool = True
    message: str
    details: EndDetails

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "success": True,
                "message": f"Session {EXAMPLE_ID} ended",
                "details": {
                    "session_id": EXAMPLE_ID,
                    "celery_task_revoked": True,
                    "process_killed": True,
                    "redis_cleaned": True,
                    "durationSeconds": 125,
                    "durationMinutes": 3,
                    "errors": [],
                },
            }
        }
    )


class SessionView(Reply):
    """One session; null where not yet."""

    session_id: str
    room_name: str
    status: Literal["waiting", "assigned", "live", "ended"]
    user_name: str
    voice_id: str
    agent_id: str | None
    agent_pid: int | None
    host_id: str | None
    generation: int = Field(description="1, and one more for each agent that was lost")
    created_at: str
    started_at: str | None = Field(description="when the caller could hear the agent")
    ended_at: str | None
    end_reason: str | None
    ended_by: Literal["caller", "client", "agent", "limit", "platform"] | None
    duration_seconds: int | None
    duration_minutes: int | None

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE_SESSION})


class SessionList(Reply):
    """A page of sessions, newest first."""

    sessions: list[SessionView]
    next_cursor: str | None = Field(description="pass it as cursor for the next page; null at the end")

    model_config = ConfigDict(json_schema_extra={"example": {"sessions": [EXAMPLE_SESSION], "nextCursor": None}})


class TokenRequest(Schema):
    """Come back into one's own session."""

    session_id: SessionId
    user_id: Name

    model_config = ConfigDict(json_schema_extra={"example": {"sessionId": EXAMPLE_ID, "userId": "user_456"}})


class TokenResponse(Reply):
    """A fresh way into the session's room."""

    token: str
    url: str

    model_config = ConfigDict(json_schema_extra={"example": {"token": "<token>", "url": "wss://livekit.example.com"}})


class ErrorResponse(BaseModel):
    """Every error looks like this."""

    success: Literal[False] = False
    error: str = Field(description="a code for programs")
    detail: str = Field(description="a sentence for people, with what to do")

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "success": False,
                "error": "session_not_found",
                "detail": f"No session {EXAMPLE_ID}: it never was, or ended more than 7 days ago.",
            }
        }
    )


def answers(example: object) -> dict[int | str, dict[str, Any]]:
    """What FastAPI's ``responses=`` takes, for a call whose answer has no class of its own."""
    return {200: {"content": {"application/json": {"example": example}}}}


def error_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What FastAPI's ``responses=`` takes, for these status codes."""
    return {code: {"model": ErrorResponse} for code in codes}


GUARDED, WITH_BODY = (401, 403, 429, 503), (400, 413, 422)
"""What every call that needs a key may be answered with, and every call that has a body."""
METRICS_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {"example": EXAMPLE_METRICS} for kind in ("text/plain", "application/openmetrics-text")}},
    **error_responses(401, 403, 429),
}
