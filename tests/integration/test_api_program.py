"""The API as a program of its own: where it listens, what it says at start, how it stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.livekit_server import LiveKitServer
from tests.valkey_server import Valkey, free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
START_SECONDS = 15.0

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path, valkey: Valkey, livekit: LiveKitServer, no_variables: None) -> Iterator[Run]:
    """Start the API with further variables; it is ended after the test."""
    known = {
        "REDIS_URL": valkey.url,
        "LIVEKIT_URL": livekit.url,
        "LIVEKIT_API_KEY": livekit.key,
        "LIVEKIT_API_SECRET": livekit.secret,
        "PYTHONPATH": str(ROOT),
    }
    started: list[subprocess.Popen[str]] = []

    def start(**variables: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "backend.orchestrator.api"]
        environment = os.environ | known | variables
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ask(port: int, path: str = "/livez", body: dict[str, Any] | None = None) -> Any:
    """The API's answer; None while it does not serve."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  # http, as above
            return json.load(answer)
    except OSError:  # not listening yet
        return None


def addresses(process: "subprocess.Popen[str]") -> set[str]:
    """Where the program listens."""
    connections = psutil.Process(process.pid).net_connections("inet")
    return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}


def test_without_keys_it_listens_on_this_machine_only_and_says_so(run: Run) -> None:
    port = free_port()
    api = run(PORT=str(port), LOG_FORMAT="json", PYTHON_SCRIPT_PATH="agent.py")
    wait_until(lambda: ask(port), timeout=START_SECONDS, what="the API serves")
    assert addresses(api) == {"127.0.0.1"}
    api.send_signal(signal.SIGTERM)
    _, log = api.communicate(timeout=5)
    lines = [json.loads(line) for line in log.splitlines()]
    sentences = " ".join(line["message"] for line in lines)
    assert "API_KEYS is not set" in sentences
    assert "PYTHON_SCRIPT_PATH is ignored" in sentences
    assert {line["program"] for line in lines} == {"api"}


def test_with_keys_it_listens_everywhere_and_warns_of_nothing(run: Run) -> None:
    port = free_port()
    api = run(PORT=str(port), API_KEYS="one")
    wait_until(lambda: ask(port), timeout=START_SECONDS, what="the API serves")
    assert addresses(api) == {"0.0.0.0"}  # noqa: S104  # that is what is tested
    api.send_signal(signal.SIGTERM)
    _, log = api.communicate(timeout=5)
    # A machine that runs other tests too may hold it up for a moment.
    assert [line for line in log.splitlines() if "WARNING" in line and "event loop stalled" not in line] == []


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "::1"])
def test_it_listens_where_it_is_told_to(run: Run, name: str) -> None:
    port = free_port()
    api = run(PORT=str(port), HOST=name)
    wait_until(lambda: addresses(api) or api.poll() is not None, timeout=START_SECONDS, what="the API listens")
    assert addresses(api) == {"::1" if name == "::1" else "127.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"HOST": "0.0.0.0"}, "HOST=0.0.0.0 without API_KEYS"),  # noqa: S104  # refused
        ({"PORT": "none"}, "PORT got 'none'"),
        ({"LIVEKIT_API_SECRET": ""}, "LIVEKIT_API_SECRET is not set"),
    ],
)
def test_what_is_set_wrongly_ends_it_with_one_line(run: Run, variables: dict[str, str], says: str) -> None:
    api = run(**({"PORT": str(free_port())} | variables))
    _, log = api.communicate(timeout=START_SECONDS)
    (line,) = log.splitlines()
    assert says in line
    assert api.returncode == 2


def test_a_busy_port_ends_it_with_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        api = run(PORT=str(port))
        _, log = api.communicate(timeout=START_SECONDS)
    (line,) = [line for line in log.splitlines() if "WARNING" not in line]
    assert line.startswith(f"PORT {port} on 127.0.0.1 cannot be bound")
    assert api.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_quick_and_quiet_even_while_redis_is_frozen(run: Run, valkey: Valkey, number: signal.Signals) -> None:
    port = free_port()
    api = run(PORT=str(port), LOG_FORMAT="json")
    wait_until(lambda: ask(port), timeout=START_SECONDS, what="the API serves")
    assert ask(port, "/api/session/start", {"userName": "Ann"})["success"]
    valkey.freeze()
    api.send_signal(number)
    _, log = api.communicate(timeout=10)
    assert api.returncode in (0, -number)
    assert "Traceback" not in log
    assert "Unclosed" not in log


def test_its_log_shows_sessions_and_no_words_of_theirs(run: Run) -> None:
    port, prompt = free_port(), "the-prompt-nobody-may-see"
    api = run(PORT=str(port), LOG_FORMAT="json", LOG_LEVEL="DEBUG")
    wait_until(lambda: ask(port), timeout=START_SECONDS, what="the API serves")
    start = {"userName": "Ann", "systemPrompt": prompt, "openingLine": prompt, "metadata": {"k": prompt}}
    started = ask(port, "/api/session/start", start)
    ask(port, "/api/session/end", {"sessionId": started["sessionId"]})
    api.send_signal(signal.SIGTERM)
    _, log = api.communicate(timeout=10)
    said = [json.loads(line) for line in log.splitlines()]
    about = [line["message"] for line in said if line.get("session_id") == started["sessionId"]]
    assert about == ["session started", "session ended"]
    assert prompt not in log
    assert started["token"] not in log
    assert "eyJ" not in log


def test_its_metrics_tell_how_long_its_loop_heeded_nothing_else(run: Run) -> None:
    port = free_port()
    run(PORT=str(port))
    wait_until(lambda: ask(port), timeout=START_SECONDS, what="the API serves")

    def seconds_watched() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return next(sample.value for sample in samples if sample.name == "greenroom_api_loop_lag_seconds_count")

    wait_until(lambda: seconds_watched() >= 1, what="a second of the loop was watched")


def answers_until(port: int, is_over: threading.Event) -> tuple[int, list[str]]:
    """Ask on a connection of its own each time until it is over; returns how many were answered, and each failure."""
    answered, failures = 0, []
    while not is_over.is_set():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=10) as answer:
                answered += answer.status == 200
        except OSError as error:
            failures.append(repr(error))
    return answered, failures


def wait_until_it_says(api: "subprocess.Popen[str]", words: str) -> None:
    """Read its log on to a line with these words."""
    assert api.stderr
    assert any(words in line for line in api.stderr), f"it ended without saying {words!r}"


def test_new_code_is_taken_without_a_refused_connection(run: Run) -> None:
    port, is_over = free_port(), threading.Event()
    api = run(PORT=str(port), LOG_FORMAT="json")
    wait_until(lambda: ask(port), timeout=START_SECONDS, what="the API serves")
    wait_until_it_says(api, "API_KEYS is not set")
    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(answers_until, port, is_over) for _ in range(4)]
        try:
            for _ in range(2):
                api.send_signal(signal.SIGHUP)
                wait_until_it_says(api, "the API is renewed")
                wait_until_it_says(api, "API_KEYS is not set")  # as at each start
                wait_until(lambda: ask(port), timeout=START_SECONDS, what="the new code serves")
        finally:
            is_over.set()
        results = [client.result() for client in asking]
    assert [failures for _, failures in results if failures] == []
    assert all(answered for answered, _ in results)
    assert addresses(api) == {"127.0.0.1"}


def test_code_that_does_not_start_leaves_the_api_as_it_is(run: Run, tmp_path: Path) -> None:
    port = free_port()
    api = run(PORT=str(port), LOG_FORMAT="json")
    wait_until(lambda: ask(port), timeout=START_SECONDS, what="the API serves")
    (tmp_path / ".env").write_text("MAX_WAITING=many\n")  # as wrong as code can be
    api.send_signal(signal.SIGHUP)
    wait_until_it_says(api, "the new code does not start")
    assert ask(port) == {"status": "ok"}
