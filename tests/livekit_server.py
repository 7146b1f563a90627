"""A real LiveKit server on ports of its own, its rooms and its tokens."""

import json
import os
import shutil
import socket
import subprocess
import uuid
from datetime import timedelta
from pathlib import Path

import aiohttp
import psutil
import pytest
from livekit import api

from backend.common.contract import AGENT_IDENTITY
from tests import leaks
from tests.valkey_server import free_port
from tests.waiting import wait_until

START_SECONDS = 15.0
EMPTY_TIMEOUT_SECONDS = 60
DEPARTURE_TIMEOUT_SECONDS = 20
API_SECONDS = 5.0
CALLER = "caller_test"


class LiveKitServer:
    """One server; its configuration and log are in ``folder``."""

    def __init__(self, folder: Path, *, webhook_url: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self.key, self.secret = "testkey", uuid.uuid4().hex + uuid.uuid4().hex
        self._webhook_url = webhook_url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it takes calls; skip the test where there is no server to start."""
        binary = find_binary()
        config = self.folder / "livekit.yaml"
        config.write_text(json.dumps(self._config()))  # JSON is YAML
        with (self.folder / "livekit.log").open("ab") as log:
            self._process = subprocess.Popen([binary, "--config", str(config)], stdout=log, stderr=log)
        leaks.may_stay(self._process.pid)
        wait_until(self._answers, timeout=START_SECONDS, what="the LiveKit server answers")

    def kill(self) -> None:
        """End it as ``kill -9`` does; a polite end waits until every participant has left."""
        if self._process:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process, "not started"
        return self._process.pid

    def token(self, room: str, identity: str, *, is_agent: bool = False) -> str:
        """For one participant of one room."""
        grants = api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True)
        token = api.AccessToken(self.key, self.secret).with_identity(identity).with_ttl(timedelta(minutes=10))
        return token.with_kind("agent" if is_agent else "standard").with_grants(grants).to_jwt()

    def agent_token(self, room: str) -> str:
        """For the room's agent."""
        return self.token(room, AGENT_IDENTITY, is_agent=True)

    async def create_room(self, name: str = "", *, departure_timeout: int = DEPARTURE_TIMEOUT_SECONDS) -> str:
        """Make a room; returns its name."""
        name = name or f"session_{uuid.uuid4().hex[:12]}"
        request = api.CreateRoomRequest(
            name=name, empty_timeout=EMPTY_TIMEOUT_SECONDS, departure_timeout=departure_timeout
        )
        async with self.api() as service:
            await service.room.create_room(request)
        return name

    async def people(self, room: str) -> dict[str, int]:
        """Who is in the room, and how many tracks each publishes."""
        async with self.api() as service:
            answer = await service.room.list_participants(api.ListParticipantsRequest(room=room))
        return {person.identity: len(person.tracks) for person in answer.participants}

    async def delete_room(self, name: str) -> None:
        """Delete a room; who is in it is put out."""
        async with self.api() as service:
            await service.room.delete_room(api.DeleteRoomRequest(room=name))

    async def identities(self, room: str) -> set[str]:
        """Who is in the room, agents too."""
        async with self.api() as service:
            answer = await service.room.list_participants(api.ListParticipantsRequest(room=room))
        return {participant.identity for participant in answer.participants}

    def api(self) -> api.LiveKitAPI:
        """Its management API; an ``async with`` closes it."""
        timeout = aiohttp.ClientTimeout(total=API_SECONDS)
        return api.LiveKitAPI(self.url.replace("ws", "http", 1), self.key, self.secret, timeout=timeout)

    def _config(self) -> dict[str, object]:
        address = _own_address()
        config: dict[str, object] = {
            "port": self.port,
            "bind_addresses": ["127.0.0.1"],
            "keys": {self.key: self.secret},
            "rtc": {
                # Not loopback: the media ports skip it, and clients ignore it.
                "node_ip": address,
                "use_ice_lite": True,
                "udp_port": (udp_port := free_port()),
                "tcp_port": free_port(),
                "ips": {"includes": [f"{address}/32"]},
                # Ourselves: else every client looks up public ones, and waits for the answer in vain.
                "stun_servers": [f"{address}:{udp_port}"],
            },
            "room": {
                "auto_create": False,
                "empty_timeout": EMPTY_TIMEOUT_SECONDS,
                "departure_timeout": DEPARTURE_TIMEOUT_SECONDS,
            },
            "logging": {"level": "info", "json": True, "pion_level": "error"},
        }
        if self._webhook_url:
            config["webhook"] = {"api_key": self.key, "urls": [self._webhook_url]}
        return config

    def _answers(self) -> bool:
        # Its exit status is 0 even when it cannot start.
        assert self._process, "not started"
        assert self._process.poll() is None, (self.folder / "livekit.log").read_text()[-2000:]
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                probe.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b" 200 " in probe.recv(64)
        except OSError:  # not listening yet
            return False


def find_binary() -> str:
    """Find a LiveKit server: LIVEKIT_SERVER_BINARY, on PATH, or the one that ``make run`` built; else skip the test."""
    built = Path(__file__).parent.parent / ".run" / "bin" / "livekit-server"
    binary = os.environ.get("LIVEKIT_SERVER_BINARY") or shutil.which("livekit-server")
    if not binary and not built.exists():
        pytest.skip("no LiveKit server: `make run` builds one")
    return binary or str(built)


def _own_address() -> str:
    """An IPv4 address of this machine that is not loopback."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                return address.address
    pytest.skip("this machine has no address but loopback, over which LiveKit sends no media")
