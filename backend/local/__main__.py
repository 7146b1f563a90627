"""``python -m backend.local``: start every program of this host, wait until it takes calls, stop all of it.

What nobody gave an address of, Redis or a LiveKit server, is started here too.
"""

import fcntl
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from backend.common.privacy import keep_to_itself
from backend.common.settings import ApiSettings, LauncherSettings, LocalSettings, WorkerSettings, read
from backend.local import embedded
from backend.local.follow import followed
from backend.local.kept import Kept, is_free, load_or_make
from backend.local.ready import wait_until_ready
from backend.local.steps import StepFailedError, say, say_as_json, stop_on_sigterm
from backend.local.supervision import Supervisor, end_leftovers, supervisor

LAUNCHER_STOP_SECONDS = 5
"""What the launcher takes after DRAIN_TIMEOUT: SIGTERM to its agents, 2 s, SIGKILL, and reporting their exits."""

WATCH_SECONDS = 0.5
"""How soon the end of supervisord is noticed."""


def main() -> None:
    """Run this host until a signal comes."""
    settings = read(LocalSettings)
    if settings.log_format == "json":
        say_as_json()
    keep_to_itself()  # and with it every program that is started here
    run_dir = settings.run_dir.absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    run_dir.chmod(0o700)
    with only_one(run_dir):
        end_leftovers(run_dir)
        (run_dir / "logs").mkdir(exist_ok=True)
        kept = load_or_make(run_dir)
        set_variables(settings, run_dir, kept)
        api, launcher = read(ApiSettings), read(LauncherSettings)
        read(WorkerSettings)
        check_port(api)
        prepare_servers(settings, run_dir, kept, api)
        serve(run_dir, api, launcher)


@contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """Hold this run directory. The lock ends with the process, however it ends."""
    with (run_dir / "local.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepFailedError(
                f"Greenroom already runs from {run_dir}: stop it there with Ctrl-C, "
                "or with `.venv/bin/supervisorctl -c supervisord.conf shutdown`."
            ) from None
        yield


def set_variables(settings: LocalSettings, run_dir: Path, kept: Kept) -> None:
    """Put into the environment what the programs, and supervisord.conf, are to read from it."""
    variables = {
        "RUN_DIR": str(run_dir),
        "HOST_ID": settings.host_id,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    if "log_dir" not in settings.model_fields_set:
        variables["LOG_DIR"] = str(run_dir / "logs" / "agents")
    if settings.redis_url is None:
        variables["REDIS_URL"] = embedded.redis_url(kept)
    if settings.livekit_url is None:
        variables["LIVEKIT_URL"] = embedded.livekit_url(kept)
        variables["LIVEKIT_API_KEY"] = kept.livekit_api_key
        variables["LIVEKIT_API_SECRET"] = kept.livekit_api_secret
    os.environ.update(variables)


def check_port(api: ApiSettings) -> None:
    """Refuse a port that is taken, before anything slow begins."""
    if not is_free(api.bind_address, api.port):
        raise StepFailedError(f"PORT={api.port} is taken on {api.bind_address}: free it, or `PORT=8001 make run`.")


def prepare_servers(settings: LocalSettings, run_dir: Path, kept: Kept, api: ApiSettings) -> None:
    """Write the files of the servers that are embedded; the others are none of supervisord's business."""
    embedded.forget_programs(run_dir)
    if settings.redis_url is None:
        embedded.prepare_redis(run_dir, kept)
    if settings.livekit_url is None:
        webhook_url = f"{address_of(api)}/livekit/webhook"
        embedded.prepare_livekit(run_dir, kept, bind_address=api.bind_address, webhook_url=webhook_url)


def serve(run_dir: Path, api: ApiSettings, launcher: LauncherSettings) -> None:
    """Start the programs, say when a call can be started, and stop them on a signal."""
    stopping = threading.Event()
    # From here on a signal is a wish: what is under way comes to its end, so that nothing is left behind.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stopping.set())
    launcher_seconds = math.ceil(launcher.drain_timeout_seconds) + LAUNCHER_STOP_SECONDS
    os.environ["LAUNCHER_STOP_SECONDS"] = str(launcher_seconds)
    logs = run_dir / "logs"
    with ExitStack() as stack:
        if api.log_format == "json":
            stack.enter_context(followed(logs))
        supervised = stack.enter_context(supervisor(run_dir, launcher_seconds=launcher_seconds))
        wait_until_ready(address_of(api), supervised, logs=logs, stopping=stopping)
        if not stopping.is_set():
            say(welcome(api, launcher, logs))
        watch(supervised, stopping)
    say("stopped")


def watch(supervised: Supervisor, stopping: threading.Event) -> None:
    """Return when ``stopping`` is set, or when somebody shut supervisord down.

    Raises:
        StepFailedError: supervisord was killed.
    """
    while not stopping.wait(WATCH_SECONDS):
        if supervised.has_ended:
            supervised.raise_if_killed()
            return


def welcome(api: ApiSettings, launcher: LauncherSettings, logs: Path) -> str:
    """Say where everything is."""
    address = address_of(api)
    voice = "demo, without keys" if launcher.is_demo_voice else "AssemblyAI, Groq and Inworld"
    lines = [
        "",
        f"Greenroom is ready: {address}/" if api.has_page else f"Greenroom is ready: {address} (the page is off)",
        f"  API       {address}/docs",
        f"  voice     {voice}",
        f"  logs      {logs}",
    ]
    if not api.has_keys:
        lines.append("  reach     this machine only, because API_KEYS is not set")
    return "\n".join([*lines, "Ctrl-C stops all of it.", ""])


def address_of(api: ApiSettings) -> str:
    """Return the API's address for this machine."""
    if api.bind_address in embedded.EVERYWHERE:
        return f"http://{embedded.LOOPBACK}:{api.port}"
    return (
        f"http://[{api.bind_address}]:{api.port}"
        if ":" in api.bind_address
        else f"http://{api.bind_address}:{api.port}"
    )


if __name__ == "__main__":
    stop_on_sigterm()
    try:
        main()
    except StepFailedError as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit(130)
