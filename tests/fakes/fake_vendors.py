"""Three vendors on localhost, by their wire protocols: AssemblyAI v3, Groq's chat completions, Inworld's speech.

In a test: ``async with FakeVendors() as vendors``. By itself:
``python -m tests.fakes.fake_vendors PORT [CONNECT_SECONDS [SPEECH_SECONDS]]``, and ``POST /control``
with any of {"transcripts", "replies", "faults": {vendor: kind}, "drop": vendor}.
"""

import asyncio
import base64
import itertools
import json
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from aiohttp import WSMsgType, web

from tests.fakes.fake_speech import say

Vendor = Literal["stt", "llm", "tts"]
Kind = Literal["", "401", "500", "hang", "mute", "half", "garbled"]
"""hang: takes the connection and never answers; mute: takes the request and gives no result; half: gives half of it;
garbled: gives JSON that is none."""

TRANSCRIPT_SECONDS = 0.1
CHUNKS_PER_SECOND = 5


@dataclass(frozen=True)
class Seen:
    """One request: a connection's headers and query, a posted body, or one message of a socket."""

    vendor: Vendor
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """A reply that calls a tool instead of saying something."""

    name: str
    arguments: Mapping[str, Any]


class FakeVendors:
    """All three on one port; what is asked is in ``requests``."""

    def __init__(self, port: int = 0, *, connect_seconds: float = 0.0, speech_seconds: float = 0.0) -> None:
        self.port = port
        self._connect_seconds, self._speech_seconds = connect_seconds, speech_seconds
        self.transcripts: list[str] = ["Hello there."]
        """What is heard, one after the other; the last one again and again."""
        self.replies: list[str | ToolCall] = ["Hello, this is the test agent."]
        """What is answered, in the same way."""
        self.requests: list[Seen] = []
        self._faults: dict[str, str] = {}
        self._sockets: dict[str, set[web.WebSocketResponse]] = {"stt": set(), "tts": set()}
        self._is_over = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "FakeVendors":
        app = web.Application()
        app.router.add_get("/v3/ws", self._hear)
        app.router.add_post("/openai/v1/chat/completions", self._think)
        app.router.add_get("/tts/v1/voice:streamBidirectional", self._speak)
        app.router.add_post("/control", self._control)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for vendor in ("stt", "tts"):
            self._abort(vendor)
        if self._runner:
            await self._runner.cleanup()

    @property
    def assembly_url(self) -> str:
        """For ASSEMBLY_URL."""
        return f"ws://127.0.0.1:{self.port}/v3/ws"

    @property
    def groq_url(self) -> str:
        """For GROQ_URL."""
        return f"http://127.0.0.1:{self.port}/openai/v1"

    @property
    def inworld_url(self) -> str:
        """For INWORLD_URL."""
        return f"ws://127.0.0.1:{self.port}/tts/v1/voice:streamBidirectional"

    def fault(self, vendor: Vendor, kind: Kind) -> None:
        """Let a vendor fail from now on; '' heals it."""
        self._faults[vendor] = kind

    def drop(self, vendor: Literal["stt", "tts"]) -> None:
        """Cut a vendor's connections, without a word."""
        self._abort(vendor)

    def seen(self, vendor: Vendor) -> list[Seen]:
        """What this vendor was asked."""
        return [request for request in self.requests if request.vendor == vendor]

    def _abort(self, vendor: str) -> None:
        for socket in tuple(self._sockets[vendor]):
            if socket._req and socket._req.transport:  # aiohttp has no public way to be rude
                socket._req.transport.abort()

    async def _control(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.transcripts = body.get("transcripts", self.transcripts)
        self.replies = body.get("replies", self.replies)
        self._faults |= body.get("faults", {})
        if "drop" in body:
            self._abort(body["drop"])
        return web.json_response({"asked": [(seen.vendor, seen.body) for seen in self.requests]})

    async def _refusal(self, vendor: Vendor) -> web.Response | None:
        kind = self._faults.get(vendor)
        if kind == "hang":
            await self._is_over.wait()
        return (
            web.json_response({"error": {"message": "a fault"}}, status=int(kind)) if kind in ("401", "500") else None
        )

    async def _open(self, vendor: Vendor, request: web.Request) -> web.WebSocketResponse | web.Response:
        self.requests.append(Seen(vendor, dict(request.query), dict(request.headers)))
        if refusal := await self._refusal(vendor):
            return refusal
        await asyncio.sleep(self._connect_seconds)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets[vendor].add(socket)
        return socket

    # ---- AssemblyAI

    async def _hear(self, request: web.Request) -> web.StreamResponse:
        socket = await self._open("stt", request)
        if not isinstance(socket, web.WebSocketResponse):
            return socket
        begin = {"type": "Begin", "id": str(uuid.uuid4()), "expires_at": int(time.time()) + 10_800}
        await socket.send_json(begin)
        turns = itertools.count()
        async for message in socket:
            if message.type != WSMsgType.TEXT:
                continue
            told = json.loads(message.data)
            self.requests.append(Seen("stt", told))
            if told["type"] == "Terminate":
                over = {"type": "Termination", "audio_duration_seconds": 1, "session_duration_seconds": 1}
                await socket.send_json(over)
                await socket.close()
            elif told["type"] == "ForceEndpoint" and self._faults.get("stt") != "mute":
                await asyncio.sleep(TRANSCRIPT_SECONDS)  # a vendor takes its time
                turn = json.dumps(_turn(next(turns), _next(self.transcripts)))
                await socket.send_str(turn[: -1 if self._faults.get("stt") == "garbled" else None])
        self._sockets["stt"].discard(socket)
        return socket

    # ---- Groq

    async def _think(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(Seen("llm", body, dict(request.headers)))
        if refusal := await self._refusal("llm"):
            return refusal
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if self._faults.get("llm") == "mute":
            await self._is_over.wait()
            return response
        for chunk in _chunks(body["model"], _next(self.replies), is_garbled=self._faults.get("llm") == "garbled"):
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    # ---- Inworld

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        socket = await self._open("tts", request)
        if not isinstance(socket, web.WebSocketResponse):
            return socket
        made: dict[str, dict[str, Any]] = {}
        async for message in socket:
            if message.type != WSMsgType.TEXT:
                continue
            told = json.loads(message.data)
            self.requests.append(Seen("tts", told))
            fault = self._faults.get("tts")
            if told.get("send_text", {}).get("text", "").strip():
                await asyncio.sleep(self._speech_seconds)
            if fault != "mute" and not (fault == "half" and "close_context" in told):
                await _speak_next(socket, told, made, is_half=fault == "half")
        self._sockets["tts"].discard(socket)
        return socket


async def _speak_next(
    socket: web.WebSocketResponse, told: dict[str, Any], made: dict[str, dict[str, Any]], *, is_half: bool
) -> None:
    context = told.get("contextId", "")
    if "create" in told:
        made[context] = told["create"]
        await socket.send_json(_result(context, contextCreated={}))
    elif context not in made:
        lost = {"contextId": context, "status": {"code": 5, "message": "Context not found"}}
        await socket.send_json({"result": lost})
    elif text := told.get("send_text", {}).get("text", "").strip():
        rate = made[context]["audioConfig"]["sampleRateHertz"]
        sound = await asyncio.to_thread(say, text, rate)
        await _send_speech(socket, context, text, (sound[: len(sound) // 4 * 2] if is_half else sound, rate))
        if not is_half:
            await socket.send_json(_result(context, flushCompleted={}))
    elif "flush_context" in told:
        await socket.send_json(_result(context, flushCompleted={}))
    elif "close_context" in told:
        del made[context]
        await socket.send_json(_result(context, contextClosed={}))


async def _send_speech(socket: web.WebSocketResponse, context: str, text: str, speech: tuple[bytes, int]) -> None:
    sound, rate = speech
    step = rate // CHUNKS_PER_SECOND * 2
    for start in range(0, len(sound), step):
        chunk: dict[str, Any] = {"audioContent": base64.b64encode(sound[start : start + step]).decode()}
        if start == 0:
            chunk["timestampInfo"] = {"wordAlignment": _alignment(text.split(), len(sound) / 2 / rate)}
        await socket.send_json(_result(context, audioChunk=chunk))


def _alignment(words: list[str], seconds: float) -> dict[str, list[Any]]:
    each = seconds / max(1, len(words))
    starts = [each * index for index in range(len(words))]
    return {
        "words": words,
        "wordStartTimeSeconds": starts,
        "wordEndTimeSeconds": [start + each for start in starts],
    }


def _result(context: str, **what: Any) -> dict[str, Any]:
    return {"result": {"contextId": context, "status": {"code": 0, "message": "", "details": []}, **what}}


def _turn(order: int, text: str) -> dict[str, Any]:
    words = [
        {"start": 300 * index, "end": 300 * index + 280, "text": word, "confidence": 0.98, "word_is_final": True}
        for index, word in enumerate(text.split())
    ]
    return {
        "type": "Turn",
        "turn_order": order,
        "turn_is_formatted": True,
        "end_of_turn": True,
        "transcript": text,
        "end_of_turn_confidence": 0.9,
        "words": words,
    }


def _chunks(model: str, reply: str | ToolCall, *, is_garbled: bool) -> list[dict[str, Any]]:
    created = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
    }
    is_said = isinstance(reply, str)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if isinstance(reply, ToolCall):
        arguments = json.dumps(dict(reply.arguments))
        function = {"name": reply.name, "arguments": arguments[: -1 if is_garbled else None]}
        deltas.append({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]})
    else:
        deltas += [{"content": f"{word} "} for word in reply.split()]
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop" if is_said else "tool_calls"})
    chunks = [{**created, "model": model, "choices": [choice]} for choice in choices]
    usage = {"prompt_tokens": 42, "completion_tokens": 9, "total_tokens": 51}
    return [*chunks, {**created, "model": model, "choices": [], "usage": usage}]


def _next(items: list[Any]) -> Any:
    return items.pop(0) if len(items) > 1 else items[0]


async def main(port: int, connect_seconds: float = 0.0, speech_seconds: float = 0.0) -> None:
    """Serve until interrupted."""
    async with FakeVendors(port, connect_seconds=connect_seconds, speech_seconds=speech_seconds):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *map(float, sys.argv[2:])))
