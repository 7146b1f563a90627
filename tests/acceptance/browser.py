"""A headless Chromium with a fake microphone, driven over its DevTools protocol."""

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import aiohttp

from tests.waiting import wait_until_async

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 20.0
"""A browser starts in about a second; a small machine that is busy may take ten times that."""
REPLY_SECONDS = 20.0
"""Longer than anything that an expression awaits in the page."""
STOP_SECONDS = 5.0
LARGEST_MESSAGE_BYTES = 64 * 1024 * 1024
"""A screenshot comes as one message; the client's own limit is 4 MiB."""

TOKEN = re.compile(r"eyJ[\w.-]+")
"""The browser's own words about a refused connection contain its address, and that the caller's token."""

FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # in a container /dev/shm is 64 MB, and a full one kills the tab
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class BrowserError(Exception):
    """Raised when the browser refuses a command, or an expression throws in the page."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """Who sits in front of the browser: what it says, and what it allows."""

    microphone: Path | None = None
    """A WAV that is played into the microphone once; without one the fake device beeps once a second."""
    allows_microphone: bool = True
    has_clicked: bool = True
    """False leaves sound blocked until a gesture, as in a page that nobody has touched."""

    def flags(self) -> Iterable[str]:
        """Give the browser's flags for this person."""
        yield "--use-fake-ui-for-media-stream" if self.allows_microphone else "--deny-permission-prompts"
        if self.microphone:
            yield f"--use-file-for-fake-audio-capture={self.microphone.resolve()}%noloop"
        if self.has_clicked:
            yield "--autoplay-policy=no-user-gesture-required"


def find_browser() -> str | None:
    """Give the path of a Chromium on PATH; None when there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@asynccontextmanager
async def open_browser(profile: Path, person: Person | None = None) -> AsyncIterator["Tab"]:
    """Start a browser with a new profile in ``profile``, give its tab, and leave no process behind.

    Raises:
        TimeoutError: it did not start within ``START_SECONDS``; its own words are in ``profile``/browser.log.
    """
    binary = find_browser()
    if binary is None:
        raise BrowserError(f"none of {', '.join(NAMES)} is on PATH")
    process = _start(binary, profile, person or Person())
    try:
        port_file = profile / "DevToolsActivePort"
        await wait_until_async(lambda: port_file.exists() and "/" in port_file.read_text(), timeout=START_SECONDS)
        port = int(port_file.read_text().splitlines()[0])
        limits = aiohttp.ClientTimeout(total=REPLY_SECONDS)
        async with aiohttp.ClientSession(timeout=limits) as session, _tab(session, port) as tab:
            yield tab
    finally:
        await asyncio.to_thread(_stop, process)


def _start(binary: str, profile: Path, person: Person) -> subprocess.Popen[bytes]:
    profile.mkdir(parents=True, exist_ok=True)
    # Root may not use Chromium's sandbox; containers usually run as root.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [binary, *FLAGS, *sandbox, *person.flags(), f"--user-data-dir={profile}", "about:blank"]
    with (profile / "browser.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the browser and the processes it made; they share its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)


@asynccontextmanager
async def _tab(session: aiohttp.ClientSession, port: int) -> AsyncIterator["Tab"]:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
        targets = await response.json()
    address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
    async with session.ws_connect(address, max_msg_size=LARGEST_MESSAGE_BYTES) as socket:
        tab = Tab(socket)
        reading = asyncio.create_task(tab.read())
        try:
            for domain in ("Page", "Runtime", "Log"):
                await tab.command(f"{domain}.enable")
            yield tab
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


@dataclass
class Tab:
    """One tab: where it is, what is in it, and what a person does in it."""

    socket: aiohttp.ClientWebSocketResponse
    complaints: list[str] = field(default_factory=list)
    """Errors of the console: exceptions, refusals of the content security policy, files that did not load."""
    _replies: dict[int, asyncio.Future[dict[str, object]]] = field(default_factory=dict)
    _numbers: Iterable[int] = field(default_factory=lambda: count(1))

    async def read(self) -> None:
        """Sort what the browser says into replies and complaints, until it closes."""
        async for message in self.socket:
            said = json.loads(message.data)
            if "id" in said:
                self._replies.pop(said["id"]).set_result(said)
            elif complaint := _complaint(said["method"], said["params"]):
                self.complaints.append(complaint)

    async def command(self, method: str, **params: object) -> dict[str, object]:
        """Send one command of the protocol and give its result.

        Raises:
            BrowserError: the browser refused it.
        """
        number = next(iter(self._numbers))
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": number, "method": method, "params": params})
        said = await asyncio.wait_for(reply, REPLY_SECONDS)
        if "error" in said:
            raise BrowserError(f"{method}: {said['error']}")
        result = said["result"]
        assert isinstance(result, dict)
        return result

    async def open(self, url: str) -> None:
        """Go to a page, and wait until it and its scripts are loaded."""
        await self.command("Page.navigate", url=url)
        # The old page answers too, until the new one has taken its place.
        await self.wait_until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> object:
        """Give the value of a JavaScript expression; a promise is awaited.

        Raises:
            BrowserError: it threw.
        """
        answer = await self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        result = answer["result"]
        assert isinstance(result, dict)
        return result.get("value")

    async def wait_until(self, expression: str, *, seconds: float = 10.0) -> object:
        """Wait until a JavaScript expression is true, and give its value."""
        return await wait_until_async(lambda: self.evaluate(expression), timeout=seconds, what=expression)

    async def text(self, selector: str) -> str:
        """Give the visible text of the first element that matches; empty when there is none or it is hidden."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def click(self, selector: str) -> None:
        """Press the mouse on the middle of an element, whatever lies there."""
        point = await self.evaluate(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            "element.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = element.getBoundingClientRect();"
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"
        )
        assert isinstance(point, dict)
        for kind in ("mousePressed", "mouseReleased"):
            await self.command("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)

    async def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        await self.command("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Press and release one key, such as Enter or Tab."""
        codes = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " ")}
        number, text = codes[key]
        await self.command("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=number, text=text)
        await self.command("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=number)

    async def emulate(self, *, width: int = 1280, height: int = 800, is_dark: bool = False) -> None:
        """Look at the page in a window of this size and colour scheme."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        """Write what is on the screen to a PNG file."""
        picture = await self.command("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(str(picture["data"])))


def _complaint(method: str, params: dict[str, object]) -> str | None:
    """Give what an event complains about; None when it is no complaint."""
    if method == "Runtime.exceptionThrown":
        return json.dumps(params["exceptionDetails"])
    if method == "Runtime.consoleAPICalled" and params["type"] == "error":
        return json.dumps(params["args"])
    entry = params.get("entry")
    if method == "Log.entryAdded" and isinstance(entry, dict) and entry["level"] == "error":
        return TOKEN.sub("(a token)", f"{entry['source']}: {entry['text']} {entry.get('url', '')}")[:1000]
    return None
