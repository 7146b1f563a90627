"""Errors in one shape, and the files of the documentation and of the page."""

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from loguru import logger
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from backend.common.settings import ApiSettings
from backend.orchestrator.auth import COOKIE, Doorkeeper
from backend.orchestrator.errors import (
    BodyTooLargeError,
    GreenroomError,
    InvalidRequestError,
    RedisAwayError,
)

PAGE = Path(__file__).parent / "page"
_SWAGGER = "node_modules/swagger-ui-dist"
FILES = {
    "greenroom.css": "greenroom.css",
    "greenroom.js": "greenroom.js",
    "docs.js": "docs.js",
    "livekit-client.umd.js": "node_modules/livekit-client/dist/livekit-client.umd.js",
    "swagger-ui.css": f"{_SWAGGER}/swagger-ui.css",
    "swagger-ui-bundle.js": f"{_SWAGGER}/swagger-ui-bundle.js",
}


def add_error_answers(app: FastAPI) -> None:
    """Answer every error as ``{"success": false, "error", "detail"}``, and none with a stack."""

    async def expected(request: Request, error: Exception) -> Response:
        known = error if isinstance(error, GreenroomError) else GreenroomError("Something went wrong")
        if known.status >= 500:
            logger.warning("request not served", path=request.url.path, status=known.status, detail=str(known))
        request.scope["refused_by"] = known.refused_by  # metrics.py counts those of starts
        return answer_to(known)

    async def redis_is_away(request: Request, error: Exception) -> Response:
        logger.warning("Redis does not answer", error=type(error).__name__)
        request.scope["refused_by"] = RedisAwayError.refused_by
        return answer_to(RedisAwayError())

    async def invalid(_: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        return answer_to(InvalidRequestError("; ".join(_explain(problem) for problem in problems[:10])))

    async def http(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        code, detail = _HTTP.get(status, ("request_refused", "This request cannot be served: see /docs"))
        return error_answer(status, code, detail, headers)

    app.add_exception_handler(GreenroomError, expected)
    app.add_exception_handler(RedisError, redis_is_away)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


_NOT_AN_OBJECT = ("model_attributes_type", "dict_type")
"""Another type, or not declared as JSON."""
_HTTP = {
    400: ("invalid_json", "The body is not JSON: send a JSON object with 'Content-Type: application/json'"),
    404: ("not_found", "There is nothing at this path: see /docs"),
    405: ("method_not_allowed", "This path takes another method: see /docs"),
    413: (BodyTooLargeError.code, "The body is larger than 64 KiB: send less"),
}


def _explain(problem: Mapping[str, object]) -> str:
    """One problem in words, without the value that was sent: it may be a prompt."""
    location = problem["loc"]
    where = ".".join(str(part) for part in location[1:])[:100] if isinstance(location, tuple) else ""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "json_invalid":
        return "The body is not valid JSON"
    if problem["type"] in _NOT_AN_OBJECT and not where:
        return "The body is not a JSON object: send one, with 'Content-Type: application/json'"
    if problem["type"] == "extra_forbidden":
        return f"{where!a} is not a field of this request: leave it out"
    if problem["type"] == "missing":
        return f"{where or 'body'} is missing: send it"
    return f"{where or 'body'}: {message[:1].lower()}{message[1:]}"


def answer_to(error: GreenroomError) -> Response:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return error_answer(error.status, error.code, str(error), headers)


def error_answer(status: int, code: str, detail: str, headers: dict[str, str]) -> Response:
    # ASCII only: a detail may quote what was sent, also halves of characters, which have no other form.
    content = json.dumps({"success": False, "error": code, "detail": detail})
    return Response(content, status_code=status, headers=headers, media_type="application/json")


def add_files(app: FastAPI, settings: ApiSettings, doorkeeper: Doorkeeper) -> None:
    """Serve the API's documentation, and the page unless it is off."""

    async def docs() -> Response:
        # Swagger's own style sheet is joined by styles that its script sets.
        return _page("docs.html", "script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'")

    async def index(request: Request) -> Response:
        answer = _page("index.html", _page_policy(settings.public_url))
        give_cookie(answer, request, doorkeeper, doorkeeper.read_cookie(request.cookies.get(COOKIE, "")))
        return answer

    async def file(name: str) -> Response:
        path = PAGE / FILES[name] if name in FILES else None
        if path is None or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    app.add_api_route("/docs", docs, include_in_schema=False)
    app.add_api_route("/page/{name}", file, include_in_schema=False)
    if settings.has_page:
        app.add_api_route("/", index, include_in_schema=False)


def give_cookie(answer: Response, request: Request, doorkeeper: Doorkeeper, visitor: str = "") -> None:
    """Let the page's visitor, a new one unless given, be known for the cookie's whole life from now on."""
    answer.set_cookie(
        COOKIE,
        doorkeeper.new_cookie(visitor),
        max_age=doorkeeper.cookie_seconds,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _page(name: str, policy: str) -> FileResponse:
    base = "default-src 'none'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    return FileResponse(PAGE / name, headers={"Content-Security-Policy": base + policy, "Cache-Control": "no-cache"})


def _page_policy(livekit_url: str) -> str:
    host = urlsplit(livekit_url).netloc
    secure = "s" if urlsplit(livekit_url).scheme in ("wss", "https") else ""
    livekit = f"ws{secure}://{host} http{secure}://{host}"
    return f"script-src 'self'; style-src 'self'; connect-src 'self' {livekit}; media-src 'self' blob:"
