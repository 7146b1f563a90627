"""What providers have in common: the facts of the call, the held voice, the vendors' sockets, the farewell."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipecat.adapters.llm.schemas.direct_function import DirectFunction
from pipecat.frames.frames import DataFrame, FunctionCallResultProperties, TTSSpeakFrame
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.tts_service import TTSService
from pipecat.services.websocket_service import WebsocketService
from pydantic import SecretStr

from backend.agent import prompt

CONNECT_SECONDS = 3.0
"""A vendor's socket opens within this or not at all; the library's 10 s would be 10 s of silence."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a mind may say about the call; the functions are asked at the moment of the answer."""

    talked_seconds: Callable[[], float]
    left_seconds: Callable[[], float | None]
    agent_id: str
    host_id: str
    session_id: str
    generation: int
    """1 is the session's first agent."""
    user_name: str


@dataclass(frozen=True, kw_only=True)
class Mind:
    """A language model, ready for the pipeline, and what goes with it."""

    think: FrameProcessor
    greeting: str
    """The opening line when the session has none."""
    tools: tuple[DirectFunction, ...] = ()
    """For the context: what the model may call."""


@dataclass
class GoodbyeFrame(DataFrame):
    """Follows the farewell downstream: when it comes out of the transport, the farewell was spoken.

    An interruption drops it, as it drops the farewell: whoever speaks again has not gone.
    """


class Held(TTSService):
    """Over any voice: it is asked for speech at once, and its first sound waits until someone can hear it.

    Holding anything else would go wrong: frames held in the pipeline count as spoken, and the
    transport gives up on an output that takes nothing for 10 s.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.heard = asyncio.Event()

    async def start_word_timestamps(self) -> None:
        """Wait; Pipecat calls this at an utterance's first sound, in the task that plays it."""
        await self.heard.wait()
        await super().start_word_timestamps()  # type: ignore[no-untyped-call]  # Pipecat's


class Socket(WebsocketService):
    """Over any service with a websocket: shared TLS, a short wait to connect, no compression of sound.

    It connects while the pipeline starts and does not hold it up: an opening line may need no vendor,
    and what the caller says meanwhile is kept.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.was_connected = False
        """Whether it ever was: until then a fault is one of the start."""
        self._connecting: asyncio.Future[None] | None = None

    async def connected(self) -> None:
        """Wait until the first attempt is over, whatever came of it."""
        if self._connecting:
            await asyncio.wait({self._connecting})

    async def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(super()._connect())  # type: ignore[no-untyped-call]  # Pipecat's
        elif self._connecting.done():
            await super()._connect()  # type: ignore[no-untyped-call]  # Pipecat's
        else:
            await self.connected()

    async def _disconnect(self) -> None:
        if self._connecting:
            self._connecting.cancel()
        await super()._disconnect()  # type: ignore[no-untyped-call]  # Pipecat's

    async def _websocket_connect(self, uri: str, **options: Any) -> Any:
        if uri.startswith("wss:"):
            options["ssl"] = tls()
        made = await super()._websocket_connect(uri, open_timeout=CONNECT_SECONDS, compression=None, **options)
        self.was_connected = True
        return made


@cache
def tls() -> ssl.SSLContext:
    """Make the one TLS context of this process and those that are forked from it: 17 to 30 ms each otherwise."""
    return ssl.create_default_context()


def reveal(key: SecretStr | None) -> str:
    """Give a vendor's key; '' when it is not set, which the vendor refuses."""
    return key.get_secret_value() if key else ""


async def end_call(params: FunctionCallParams, farewell: str) -> None:
    """End the call. Use it, and say nothing else, when the caller says goodbye or asks to hang up.

    Args:
        farewell: One short sentence of goodbye, which is spoken before the call ends.
    """
    await params.llm.push_frame(TTSSpeakFrame(farewell.strip() or prompt.FAREWELL))
    await params.llm.push_frame(GoodbyeFrame())
    await params.result_callback({"ended": True}, properties=FunctionCallResultProperties(run_llm=False))
