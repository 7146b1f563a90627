"""What an embedded server needs again at the next start: secrets and ports, in ``kept.json``."""

import json
import os
import secrets
import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

PORTS = {"redis": TCP, "livekit": TCP, "livekit_tcp": TCP, "livekit_udp": UDP}
"""The ports of the embedded servers."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Made at the first start. The secrets stay for ever, a port as long as nobody else takes it."""

    livekit_api_key: str
    livekit_api_secret: str
    redis_password: str
    ports: dict[str, int]


def load_or_make(run_dir: Path) -> Kept:
    """Read what is kept, with another port for each that is taken now; the file is for its owner only."""
    path = run_dir / "kept.json"
    before = Kept(**json.loads(path.read_text())) if path.exists() else _make()
    kept = Kept(**{**asdict(before), "ports": free_ports(before.ports)})
    write_private(path, json.dumps(asdict(kept), indent=2))
    return kept


def free_ports(wanted: dict[str, int]) -> dict[str, int]:
    """Choose a free port for each of ``PORTS``: the wanted one if it is free."""
    chosen = {}
    with ExitStack() as held:  # all are held until the last is chosen, so that they differ
        for name, kind in PORTS.items():
            taken = held.enter_context(socket.socket(socket.AF_INET, kind))
            _bind(taken, wanted.get(name, 0))
            chosen[name] = taken.getsockname()[1]
    return chosen


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, TCP) as probe:
        # As servers do: connections of the last run that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    unfinished.replace(path)


def _make() -> Kept:
    return Kept(
        livekit_api_key="greenroom",
        livekit_api_secret=secrets.token_urlsafe(32),
        redis_password=secrets.token_urlsafe(32),
        ports={},
    )


def _bind(taken: socket.socket, port: int) -> None:
    # On all addresses: LiveKit's media ports listen on all of them.
    if taken.type == TCP:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(("", port))
    except OSError:
        taken.bind(("", 0))
