"""The parts of ``make run`` on real servers and processes; the whole of it is what the acceptance tests start."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
import redis
from livekit import api
from redis.backoff import NoBackoff
from redis.retry import Retry

from backend.common.settings import PROGRAMS
from backend.local import embedded, kept, livekit, ready, setup, steps, supervision
from backend.local.__main__ import only_one
from backend.local.follow import Followed
from tests.livekit_server import find_binary
from tests.valkey_server import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SETTINGS = {str(field.validation_alias) for program in PROGRAMS for field in program.model_fields.values()}
START_SECONDS = 15.0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def run_local(run_dir: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m backend.local`` with these variables and no others, where it is expected to refuse."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        (sys.executable, "-m", "backend.local"),
        cwd=ROOT,
        env=environment | {"RUN_DIR": str(run_dir)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def running(command: tuple[str | Path, ...], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **variables})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# --- what is refused before anything starts


def test_taken_port_is_named_in_one_line_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = run_local(tmp_path, PORT=str(port))
    assert answer.returncode == 1
    assert answer.stderr == f"PORT={port} is taken on 127.0.0.1: free it, or `PORT=8001 make run`.\n"


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"PORT": "90000"}, ["PORT got '90000'"]),
        ({"MAX_BOTS": "many"}, ["MAX_BOTS got 'many'"]),
        ({"LIVEKIT_URL": "ws://127.0.0.1:1"}, ["LIVEKIT_API_KEY is not set", "LIVEKIT_API_SECRET is not set"]),
    ],
)
def test_wrong_variable_ends_it_with_one_line_each_and_code_2(
    tmp_path: Path, variables: dict[str, str], names: list[str]
) -> None:
    answer = run_local(tmp_path, **{"PORT": str(free_port()), **variables})
    assert answer.returncode == 2
    assert all(line.startswith(name) for line, name in zip(answer.stderr.splitlines(), names, strict=True)), (
        answer.stderr
    )


def test_second_run_of_a_checkout_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(steps.StepFailedError, match="already runs"), only_one(tmp_path):
        pytest.fail("both run")
    with only_one(tmp_path):
        pass


# --- secrets and ports


def test_secrets_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    first = kept.load_or_make(tmp_path)
    again = kept.load_or_make(tmp_path)
    assert again == first
    assert len(first.livekit_api_secret) >= 32
    assert mode(tmp_path / "kept.json") == 0o600


def test_another_installation_has_other_secrets(tmp_path: Path) -> None:
    one, other = kept.load_or_make(tmp_path / "one"), kept.load_or_make(tmp_path / "other")
    assert one.livekit_api_secret != other.livekit_api_secret
    assert one.redis_password != other.redis_password


def test_port_that_somebody_took_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    before = kept.load_or_make(tmp_path).ports
    assert len(set(before.values())) == len(kept.PORTS)
    with socket.create_server(("127.0.0.1", before["redis"])):
        after = kept.load_or_make(tmp_path).ports
    assert after["redis"] != before["redis"]
    assert {**after, "redis": 0} == {**before, "redis": 0}


# --- Redis


@contextmanager
def running_redis(run_dir: Path, redis_kept: kept.Kept) -> Iterator[redis.Redis]:
    embedded.prepare_redis(run_dir, redis_kept)
    binary = embedded.find_redis()
    with (
        running((binary, run_dir / "redis" / "redis.conf"), run_dir / "redis.log") as process,
        closing(redis.Redis.from_url(embedded.redis_url(redis_kept), decode_responses=True)) as client,
    ):
        wait_until(lambda: _answers(client), what="Redis answers")
        assert redis_kept.redis_password not in " ".join(psutil.Process(process.pid).cmdline())
        yield client


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_embedded_redis_keeps_what_it_was_told_over_a_kill(tmp_path: Path) -> None:
    redis_kept = kept.load_or_make(tmp_path)
    with running_redis(tmp_path, redis_kept) as client:
        client.set("session:x", "kept")
        # Its promise is a second; a test need not wait for it.
        client.config_set("appendfsync", "always")
        client.set("session:y", "kept")
    with running_redis(tmp_path, redis_kept) as client:
        assert client.mget("session:x", "session:y") == ["kept", "kept"]
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendfsync")["appendfsync"] == "everysec"


def test_embedded_redis_answers_nobody_without_its_password(tmp_path: Path) -> None:
    redis_kept = kept.load_or_make(tmp_path)
    with (
        running_redis(tmp_path, redis_kept),
        closing(redis.Redis(port=redis_kept.ports["redis"], retry=Retry(NoBackoff(), 0))) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    assert mode(tmp_path / "redis" / "redis.conf") == 0o600


# --- LiveKit


def test_livekit_server_takes_our_configuration_and_no_room_but_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(livekit, "find_or_build", lambda: Path(find_binary()))
    place = kept.load_or_make(tmp_path)
    embedded.prepare_livekit(
        tmp_path, place, bind_address="127.0.0.1", webhook_url="http://127.0.0.1:9/livekit/webhook"
    )
    config = tmp_path / "livekit" / "livekit.yaml"
    token = api.AccessToken(place.livekit_api_key, place.livekit_api_secret)
    token.with_identity("caller_x").with_grants(api.VideoGrants(room_join=True, room="not-ours"))
    address = embedded.livekit_url(place).replace("ws", "http", 1)
    with running((find_binary(), "--config", config), tmp_path / "livekit.log") as process:
        wait_until(lambda: _is_up(address, process), timeout=START_SECONDS, what="the LiveKit server answers")
        answer = httpx.get(f"{address}/rtc/validate", params={"access_token": token.to_jwt()})
        assert place.livekit_api_secret not in " ".join(psutil.Process(process.pid).cmdline())
    assert answer.status_code == 404, answer.text
    assert mode(config) == 0o600


def _is_up(address: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "it refused its configuration"
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def test_machine_without_a_network_offers_its_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    monkeypatch.setattr(embedded, "ELSEWHERE", ("127.0.0.1", 9))
    place = livekit.Place(bind_addresses=("127.0.0.1",), port=1, tcp_port=2, udp_port=3, node_ip=embedded.own_address())
    config = json.loads(livekit.config(place, key="key", secret=place.node_ip, webhook_url="http://127.0.0.1:9"))
    assert config["rtc"]["node_ip"] == "127.0.0.1"
    assert config["rtc"]["enable_loopback_candidate"]


FAKE_GO = """#!/bin/sh
[ "$1" = env ] && echo go1.26.8 && exit
echo half > "$GOBIN/server"
[ -e "{hang}" ] || exit 0
sleep 1000 & wait
"""


def test_interrupted_build_leaves_nothing_half_done_and_the_next_one_works(tmp_path: Path) -> None:
    tools, built, hang = tmp_path / "tools", tmp_path / "bin" / "livekit-server", tmp_path / "hang"
    tools.mkdir()
    (tools / "go").write_text(FAKE_GO.format(hang=hang))
    (tools / "go").chmod(0o755)
    hang.touch()
    code = (
        "from pathlib import Path; from backend.local import livekit, steps; steps.stop_on_sigterm();"
        f"livekit.BUILT = Path({str(built)!r}); print(livekit.find_or_build())"
    )
    environment = {**os.environ, "PATH": f"{tools}:/usr/bin:/bin"}
    build = subprocess.Popen((sys.executable, "-c", code), cwd=ROOT, env=environment)
    wait_until(lambda: list(tmp_path.glob("bin/*/server")), what="the build has begun")
    build.send_signal(signal.SIGTERM)
    assert build.wait(5) == 128 + signal.SIGTERM
    assert not list(built.parent.iterdir())

    hang.unlink()
    subprocess.run((sys.executable, "-c", code), cwd=ROOT, env=environment, check=True, capture_output=True)
    assert [path.name for path in built.parent.iterdir()] == ["livekit-server"]


# --- the environment


FAKE_PYTHON = """#!/bin/sh
[ "$3" = --version ] && exit
echo "$@" >> "{calls}"
[ ! -e "{broken}" ] || {{ echo no such package; exit 1; }}
"""


def test_failed_installation_is_tried_again_and_a_finished_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, calls, broken = tmp_path / "bin" / "python", tmp_path / "calls", tmp_path / "broken"
    python.parent.mkdir()
    python.write_text(FAKE_PYTHON.format(calls=calls, broken=broken))
    python.chmod(0o755)
    monkeypatch.setattr(setup, "VENV", tmp_path)
    broken.touch()
    with pytest.raises(steps.StepFailedError, match="no such package"):
        setup.install("some", "package==1", about="no time")
    broken.unlink()
    for lock in ("package==1", "package==1", "package==2"):
        setup.install("some", lock, about="no time")
    assert len(calls.read_text().splitlines()) == 3, "failed, done, not again, and again for another lock"


def test_the_command_is_written_once_and_runs_this_checkout_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = tmp_path / "an environment" / "bin"
    command, python = environment / "greenroom", environment / "python"
    environment.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(setup, "VENV", environment.parent)
    setup.install_command()
    written_at = command.stat().st_mtime_ns
    setup.install_command()
    assert command.stat().st_mtime_ns == written_at
    shown = subprocess.run((command, "call", "--help"), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: greenroom call")


def test_what_takes_long_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(steps, "QUIET_SECONDS", 0.05)
        steps.run(("sleep", "0.3"), what="thinking", about="a moment")
    steps.run(("true",), what="blinking", about="no time")
    assert capsys.readouterr().out == "thinking (a moment) ...\n"


# --- supervisord


CONFIGURATION = """
[supervisord]
nodaemon=true
silent=true
logfile=%(ENV_RUN_DIR)s/logs/supervisord.log
pidfile=%(ENV_RUN_DIR)s/supervisord.pid
[unix_http_server]
file=%(ENV_RUN_DIR)s/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[program:api]
command=sh -c "{command}"
startretries=0
stopwaitsecs=1
redirect_stderr=true
stdout_logfile=%(ENV_RUN_DIR)s/logs/api.log
"""


@pytest.fixture
def run_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "logs").mkdir()
    monkeypatch.setenv("RUN_DIR", str(folder))
    return folder


@contextmanager
def supervised(run_dir: Path, command: str) -> Iterator[supervision.Supervisor]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(supervision, "CONFIGURATION", run_dir / "supervisord.conf")
        (run_dir / "supervisord.conf").write_text(CONFIGURATION.format(command=command))
        with supervision.supervisor(run_dir, launcher_seconds=1) as supervisor:
            yield supervisor


def test_program_that_cannot_start_is_named_with_the_end_of_its_log(run_dir: Path) -> None:
    with (
        supervised(run_dir, "echo my words; exit 3") as supervisor,
        pytest.raises(steps.StepFailedError, match=r"(?s)api \(fatal\).*my words"),
    ):
        ready.wait_until_ready(
            f"http://127.0.0.1:{free_port()}", supervisor, logs=run_dir / "logs", stopping=threading.Event()
        )


def test_program_that_ends_again_and_again_is_given_up() -> None:
    starts = ready.Starts()
    programs = [supervision.Program(name="api", state="RUNNING", pid=pid) for pid in range(1, 10)]
    verdicts = [starts.are_hopeless([program, programs[0]]) for program in programs]
    assert verdicts == [False] * ready.MOST_STARTS + [True] * (9 - ready.MOST_STARTS)


def test_wish_to_stop_ends_the_waiting(run_dir: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    with supervised(run_dir, "sleep 100") as supervisor:
        ready.wait_until_ready("http://127.0.0.1:9", supervisor, logs=run_dir / "logs", stopping=stopping)
    assert supervisor.has_ended


def test_no_process_outlives_supervisord_not_even_one_that_left_its_group_and_ignores_signals(run_dir: Path) -> None:
    stubborn = "trap '' TERM; setsid sh -c 'echo $$ > stubborn; while :; do sleep 1; done'"
    with supervised(run_dir, f"cd {run_dir}; {stubborn}"):
        pid = int(wait_until(lambda: (run_dir / "stubborn").exists() and (run_dir / "stubborn").read_text()))
    assert not psutil.pid_exists(pid)


def test_killed_supervisord_is_noticed_and_what_it_ran_is_ended(run_dir: Path) -> None:
    with supervised(run_dir, f"echo $$ > {run_dir}/pid; sleep 100; true") as supervisor:
        pid = int(wait_until(lambda: (run_dir / "pid").exists() and (run_dir / "pid").read_text()))
        os.kill(int((run_dir / "supervisord.pid").read_text()), signal.SIGKILL)
        wait_until(lambda: supervisor.has_ended)
        assert psutil.pid_exists(pid)
        with pytest.raises(steps.StepFailedError, match="ended with code -9"):
            supervisor.raise_if_killed()
    assert not psutil.pid_exists(pid)


# --- the logs


def test_followed_log_gives_whole_lines_also_over_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("before\n")
    with closing(Followed(log)) as followed, log.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert followed.new_lines() == [b"one"]
        file.write("o\nthree\n")
        file.flush()
        log.rename(tmp_path / "api.log.1")
        log.write_text("four\n")
        assert followed.new_lines() == [b"two", b"three", b"four"]
        assert followed.new_lines() == []
