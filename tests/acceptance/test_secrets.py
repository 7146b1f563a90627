"""A run of the whole product with secrets that are known, and then a look at everything that it wrote or showed."""

import asyncio
import contextlib
import json
import re
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
import redis

from backend.common import keys
from tests.acceptance.house import House
from tests.fakes.fake_caller import FakeCaller
from tests.fakes.fake_vendors import FakeVendors, ToolCall, Vendor
from tests.livekit_server import find_binary
from tests.waiting import wait_until_async

API_KEY, FILE_KEY, WRONG_KEY = "marked-api-key-0001", "marked-file-key-0002", "marked-wrong-key-0003"
VENDOR_KEYS = {
    "ASSEMBLY_API_KEY": "marked-assembly-0004",
    "GROQ_API_KEY": "marked-groq-0005",
    "INWORLD_API_KEY": "bWFya2VkLWlud29ybGQtMDAwNg==",
}
PROMPT, OPENING, METADATA = "You guard marked-prompt-0007.", "Welcome, marked opening eight.", "marked-metadata-0009"
HEARD, SAID, TYPED = "Marked transcript ten", "Marked reply eleven", "marked typing twelve"
FAREWELL = "Marked farewell thirteen"
WORDS = ("marked-prompt-0007", "marked opening eight", HEARD, SAID, TYPED, FAREWELL)
COMPLAIN = {"pipecat.services.assemblyai.stt", "pipecat.services.openai.base_llm", "pipecat.services.tts_service"}
"""Where Pipecat quotes what it heard, what the model wanted and what it was to say."""
MAY_HOLD = {"kept.json", "livekit.yaml", "redis.conf", "valkey.conf"}
"""What the embedded servers need to start again: their secrets, for the owner only."""
REDIS_DATA = "redis"
"""Its folder under the run directory: state, not a log."""
COMMANDS = {
    "launcher": "backend.agent.launcher",
    "api": "backend.orchestrator.api",
    "worker": "celery_app worker",
    "beat": "celery_app beat",
    "redis": "redis.conf",
    "livekit": "livekit.yaml",
}
"""What shows in a program's command line; an agent shows its launcher's, and is known by its name."""
TOKEN = re.compile(rb"eyJ[\w-]{6,}\.[\w-]{6,}")


@pytest.fixture
async def vendors() -> AsyncIterator[FakeVendors]:
    """Give the three vendors, on ports of their own."""
    async with FakeVendors() as vendors:
        vendors.transcripts, vendors.replies = [HEARD], [SAID]
        yield vendors


@pytest.fixture
async def house(vendors: FakeVendors, tmp_path: Path) -> AsyncIterator[House]:
    """Give the whole product, with API keys, the page and keys for the vendors."""
    find_binary()
    file = tmp_path / "keys"
    file.write_text(f"app={FILE_KEY}\n")
    addresses = {"ASSEMBLY_URL": vendors.assembly_url, "GROQ_URL": vendors.groq_url, "INWORLD_URL": vendors.inworld_url}
    door = {"API_KEYS": f"web={API_KEY}", "API_KEYS_FILE": str(file), "PAGE": "on", "HOST": "127.0.0.1"}
    house = House(**VENDOR_KEYS, **addresses, **door)
    house.headers = {"Authorization": f"Bearer {API_KEY}"}
    try:
        await asyncio.to_thread(house.start)  # the vendors answer in this very loop
        yield house
    finally:
        await asyncio.to_thread(house.discard)


class Run:
    """One run of the product: what was secret in it, and what it showed."""

    def __init__(self, house: House) -> None:
        self.house = house
        kept = json.loads((house.run_dir / "kept.json").read_text())
        self.livekit_secret, self.redis_password = kept["livekit_api_secret"], kept["redis_password"]
        self._redis_port = kept["ports"]["redis"]
        self.secrets = {self.livekit_secret, self.redis_password, API_KEY, FILE_KEY, WRONG_KEY, METADATA}
        self.secrets |= {*VENDOR_KEYS.values(), *WORDS}
        self.shown: list[str] = []
        """Command lines, and answers to what was refused."""
        self.environments: dict[str, set[bytes]] = {name: set() for name in ("agent", *COMMANDS)}
        """Of every process of a program."""

    def note_processes(self) -> None:
        """Look at every process of the house: what others on the machine would see, and what each was given."""
        for process in self.house.processes():
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                folder = Path("/proc") / str(process.pid)
                command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
                self.shown.append(command)
                name = next((name for name, part in COMMANDS.items() if part in command), "")
                if (folder / "comm").read_text().strip() == "agent":
                    name = "agent"
                if name:
                    self.environments[name].add((folder / "environ").read_bytes())
                limits = (folder / "limits").read_text()
                assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), process.cmdline()
                assert int((folder / "coredump_filter").read_text(), 16) == 0, process.cmdline()

    def note_room_tokens(self, session_id: str) -> None:
        """Learn the agents' own token."""
        address = f"redis://:{self.redis_password}@127.0.0.1:{self._redis_port}/0"
        with redis.Redis.from_url(address, decode_responses=True) as client:
            token: Any = client.hget(keys.session(session_id), "room_token")
        assert token
        self.secrets.add(str(token))

    async def ask_wrongly(self, session_id: str) -> None:
        """Send what is to be refused, with secrets in it."""
        right, start = self.house.headers, "/orchestrator/session/start"
        prompt = {"userName": "spy", "systemPrompt": PROMPT, "openingLine": OPENING}
        async with httpx.AsyncClient(base_url=self.house.url, timeout=20) as client:
            once = right | {"Idempotency-Key": "marked"}
            await client.post(start, json={"userName": "spy"}, headers=once)
            answers = [
                await client.post(start, json=prompt, headers={"Authorization": f"Bearer {WRONG_KEY}"}),
                await client.post(start, json=prompt | {"systemPrompt": [PROMPT]}, headers=right),
                await client.post(start, json=prompt | {PROMPT: API_KEY}, headers=right),
                await client.post(start, content=json.dumps(prompt)[:-1], headers=right),
                await client.post(start, json=prompt, headers=once),
                await client.post("/livekit/webhook", json=prompt, headers={"Authorization": API_KEY}),
                await client.post("/api/token", json={"sessionId": session_id, "userId": "eve"}, headers=right),
                await client.get(f"/api/session/{session_id}", headers={"Authorization": f"Basic {WRONG_KEY}"}),
            ]
        assert {answer.status_code for answer in answers} <= {400, 401, 403, 404, 409, 422}
        # What a client wrote itself as a field's name is repeated to it, and to nobody else.
        self.shown += [answer.text for answer in answers if answer is not answers[2]]

    def files(self) -> Iterator[tuple[Path, bytes]]:
        """Everything the run wrote, but for Redis' data and what the embedded servers need."""
        for path in self.house.folder.rglob("*"):
            inside = path.relative_to(self.house.folder)
            if not path.is_file() or inside.parts[:2] == ("run", REDIS_DATA):
                continue
            if path.name in MAY_HOLD:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
                continue
            yield inside, path.read_bytes()

    def leaks(self) -> list[str]:
        """Every secret that can be found, and where."""
        found = [
            f"{inside}: {secret}" for inside, held in self.files() for secret in self.secrets if secret.encode() in held
        ]
        found += [f"{inside}: a token" for inside, held in self.files() if TOKEN.search(held)]
        found += [
            f"shown: {secret} in {text[:200]}" for text in self.shown for secret in self.secrets if secret in text
        ]
        return found + list(self._held_in_vain())

    def _held_in_vain(self) -> Iterator[str]:
        """Every secret in the environment of a program that has no use for it, and what may tell where one is."""
        vendors, redis_password = set(VENDOR_KEYS.values()), {self.redis_password}
        needed = {"agent": vendors | redis_password, "launcher": vendors | redis_password}
        needed |= {name: {self.livekit_secret} | redis_password for name in ("api", "worker", "beat")}
        needed["api"].add(API_KEY)
        for program, environments in self.environments.items():
            barred = {secret.encode() for secret in self.secrets - needed.get(program, set())}
            barred |= {b"\0API_KEYS_FILE="} if program != "api" else set()
            for held in environments:
                yield from (f"environment of {program}: {one!r}" for one in barred if one in held)


async def call(run: Run) -> str:
    """A call in which everything is said, whose agent dies, and which the client ends."""
    wish = {"userName": "spy", "openingLine": OPENING, "systemPrompt": PROMPT, "metadata": {"note": METADATA}}
    started = await asyncio.to_thread(run.house.post, "/orchestrator/session/start", wish)
    session_id = str(started["sessionId"])
    run.secrets.add(started["token"])
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        await caller.utterance()
        await caller.say("what is the highest building in the world")
        await caller.shown(SAID, speaker="agent", timeout=30)
        await caller.type(TYPED)
        await caller.utterance(since=time.monotonic())
        await asyncio.to_thread(run.note_processes)
        await asyncio.to_thread(run.note_room_tokens, session_id)
        shown = await asyncio.to_thread(run.house.get, f"/orchestrator/session/{session_id}")
        await asyncio.to_thread(run.house.kill, shown["agentPid"])
        await caller.sound(since=time.monotonic() + 0.3, timeout=30)
        await run.ask_wrongly(session_id)
        await asyncio.to_thread(run.house.post, "/orchestrator/session/end", {"sessionId": session_id})
        await asyncio.wait_for(caller.is_out.wait(), timeout=20)
    return session_id


async def fail(run: Run, vendors: FakeVendors, vendor: Vendor) -> None:
    """A call in which a vendor refuses our key."""
    vendors.fault(vendor, "401")
    wish = {"userName": "spy", "openingLine": OPENING, "systemPrompt": PROMPT}
    started = await asyncio.to_thread(run.house.post, "/orchestrator/session/start", wish)
    run.secrets.add(started["token"])
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        await asyncio.wait_for(caller.is_out.wait(), timeout=40)
    vendors.fault(vendor, "")


async def garble(run: Run, vendors: FakeVendors) -> None:
    """A call in which what was heard, and then the model's farewell, come as JSON that cannot be read."""
    vendors.fault("stt", "garbled")
    vendors.fault("llm", "garbled")
    vendors.replies = [ToolCall("end_call", {"farewell": FAREWELL})]
    wish = {"userName": "spy", "openingLine": OPENING, "systemPrompt": PROMPT}
    started = await asyncio.to_thread(run.house.post, "/orchestrator/session/start", wish)
    run.secrets.add(started["token"])
    async with FakeCaller() as caller:
        await caller.join(started["serverUrl"], started["token"])
        await caller.utterance()
        asked = len(vendors.seen("llm"))
        await caller.say("what is the highest building in the world")
        await caller.type(TYPED)
        await wait_until_async(lambda: len(vendors.seen("llm")) > asked, timeout=10, what="the model is asked")
        await caller.utterance(since=time.monotonic())  # the apology
        await asyncio.to_thread(run.house.post, "/orchestrator/session/end", {"sessionId": started["sessionId"]})
        await asyncio.wait_for(caller.is_out.wait(), timeout=20)


async def test_no_secret_prompt_or_word_is_in_anything_that_a_run_wrote_or_showed(
    house: House, vendors: FakeVendors
) -> None:
    run = Run(house)
    session_id = await call(run)
    await fail(run, vendors, "stt")
    await garble(run, vendors)
    vendors.fault("stt", "")
    await fail(run, vendors, "tts")

    def is_settled() -> bool:
        return "session settled" in house.everything_written()

    await wait_until_async(is_settled, timeout=20, what="the session is settled")
    await asyncio.to_thread(run.note_processes)
    assert all(run.environments.values()), "processes of every program were seen"
    names = {path.name for path, _ in run.files()}
    assert {"api.log", "worker.log", "launcher.log", "livekit.log", f"{session_id}.log"} <= names
    assert "web:" in house.everything_written(), "keys are logged by name"
    assert run.leaks() == []
    places = set(re.findall(r"where=([\w.]+):\d+", house.everything_written()))
    assert places >= COMPLAIN, "all had reason to"
    for part in ("AssemblyAiEars", "InworldVoice"):  # what the operator needs to know, without a quote
        assert re.search(rf"a part complains part={part} category=authentication", house.everything_written())
    (house.run_dir / "logs" / "planted.log").write_text(f"{TYPED} {API_KEY}")
    assert len(run.leaks()) == 2, "what is there is found"
