"""The worker and beat as programs of their own: what they take, what they leave, what they survive."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from kombu import pools
from livekit import api

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Start
from backend.common.settings import ApiSettings, WorkerSettings
from backend.orchestrator.broker import LONGEST_BACKLOG, PERIODS_SECONDS, broker_url, make_app
from tests.integration.running_api import HOST, host_is_seen
from tests.livekit_server import LiveKitServer
from tests.valkey_server import Valkey
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
START_SECONDS = 15.0
SESSION = "session_1762018728198_00000000000000ce"
CELERY = (sys.executable, "-m", "celery", "-A", "backend.orchestrator.celery_app")
WORKER = (
    *CELERY,
    "worker",
    "-Q",
    f"control,host.{HOST}",
    "--without-gossip",
    "--without-mingle",
)
BEAT = (*CELERY, "beat", "--pidfile=")


class Deployment:
    """One Redis, one LiveKit server, and the Celery programs that a test starts."""

    def __init__(self, folder: Path, valkey: Valkey, livekit: LiveKitServer) -> None:
        self.folder, self.valkey = folder, valkey
        self.variables: dict[str, str] = {
            "REDIS_URL": valkey.url,
            "LIVEKIT_URL": livekit.url,
            "LIVEKIT_API_KEY": livekit.key,
            "LIVEKIT_API_SECRET": livekit.secret,
            "DEPLOYMENT_ID": folder.name,
            "HOST_ID": HOST,
            "RUN_DIR": str(folder),
            "WORKER_CONCURRENCY": "2",
            "PYTHONPATH": str(ROOT),
        }
        values: dict[str, Any] = dict(self.variables)
        self.app = make_app(WorkerSettings(_env_file=None, **values))
        self.broker: Any = redis.Redis.from_url(valkey.broker_url, decode_responses=True)
        self.running: list[subprocess.Popen[bytes]] = []
        self.log = folder / "celery.log"

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start a program in a process group of its own."""
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                command, cwd=self.folder, env=os.environ | self.variables, stdout=log, stderr=log, process_group=0
            )
        self.running.append(started)
        return started

    def start_worker(self, name: str = HOST) -> "subprocess.Popen[bytes]":
        """Start a worker, and wait until it takes commands."""
        worker = self.start(*WORKER, "-n", f"worker@{name}")
        control, me = self.app.control, [f"worker@{name}"]
        wait_until(lambda: control.ping(me, timeout=0.5, limit=1), timeout=START_SECONDS, what="the worker answers")
        return worker

    def start_beat(self) -> "subprocess.Popen[bytes]":
        """Start beat, and wait for its first ticks; no worker may run yet."""
        before = self.lying()
        beat = self.start(*BEAT)
        wait_until(lambda: self.lying() > before, timeout=START_SECONDS, what="beat ticks")
        return beat

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def send(self, name: str, *args: str, queue: str = "control", expires: float | None = 20) -> None:
        self.app.send_task(name, args=args, queue=queue, expires=expires, ignore_result=True)

    def lying(self, queue: str = "control") -> int:
        return int(self.broker.llen(f"celery:{queue}"))

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        # They are the process', and may lead to a server that a test killed.
        pools.reset()  # type: ignore[no-untyped-call]  # kombu has no types
        self.app.close()
        self.broker.close()


@pytest.fixture
def deployment(tmp_path: Path, valkey: Valkey, livekit: LiveKitServer, no_variables: None) -> Iterator[Deployment]:
    made = Deployment(tmp_path, valkey, livekit)
    yield made
    made.end()


def swept_at(valkey: Valkey) -> int:
    return int(valkey.client.hget(keys.SWEEP, "swept_at_ms") or 0)


def wait_for_sweep(valkey: Valkey) -> None:
    before = swept_at(valkey)
    wait_until(lambda: swept_at(valkey) > before, timeout=10, what="a sweep comes")


@contextmanager
def fake_launcher(deployment: Deployment) -> Iterator[list[dict[str, Any]]]:
    """Listen where the launcher would, and say yes; gives what was asked."""
    asked: list[dict[str, Any]] = []
    folder = deployment.folder / HOST
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "launcher.sock"))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, connection.makefile("rw") as stream:
                    asked.append(json.loads(stream.readline()))
                    stream.write('{"ok": true, "pid": 1, "nonce": "n"}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


# -- how it is set up


def test_nothing_is_acknowledged_late_or_kept_without_a_limit(deployment: Deployment) -> None:
    conf = deployment.app.conf
    assert not conf.task_acks_late
    assert not conf.task_reject_on_worker_lost
    assert conf.task_ignore_result
    assert conf.result_backend is None
    assert (conf.worker_prefetch_multiplier, conf.worker_disable_prefetch) == (1, True)
    assert (conf.task_soft_time_limit, conf.task_time_limit) == (10, 15)
    assert conf.broker_connection_max_retries is None
    assert (conf.control_queue_ttl, conf.control_queue_expires) == (300, 300)
    options = conf.broker_transport_options
    assert options["visibility_timeout"] > conf.task_time_limit
    assert options["global_keyprefix"] == "celery:"
    assert {"socket_timeout", "socket_connect_timeout", "health_check_interval"} <= options.keys()


def test_every_periodic_task_has_an_expiry_and_the_control_queue(deployment: Deployment) -> None:
    schedule = deployment.app.conf.beat_schedule
    assert {entry["task"] for entry in schedule.values()} == {f"greenroom.{name}" for name in PERIODS_SECONDS}
    for entry in schedule.values():
        assert entry["options"]["queue"] == "control"
        assert 0 < entry["options"]["expires"] <= max(2, entry["schedule"])


@pytest.mark.parametrize(
    ("redis_url", "broker"),
    [
        ("redis://h:6379", "redis://h:6379/1"),
        ("redis://h:6379/", "redis://h:6379/1"),
        ("rediss://u:p@h:6379/3?ssl_cert_reqs=none", "rediss://u:p@h:6379/4?ssl_cert_reqs=none"),
    ],
)
def test_the_broker_is_the_next_database(redis_url: str, broker: str, no_variables: None) -> None:
    known: dict[str, Any] = {"livekit_url": "ws://x", "livekit_api_key": "k", "livekit_api_secret": "s" * 32}
    assert broker_url(ApiSettings(_env_file=None, redis_url=redis_url, **known)) == broker
    set_itself = ApiSettings(_env_file=None, redis_url=redis_url, broker_url="redis://other:1/0", **known)
    assert broker_url(set_itself) == "redis://other:1/0"


# -- a worker


def test_a_worker_runs_our_tasks_and_a_stop_leaves_no_process(deployment: Deployment, valkey: Valkey) -> None:
    worker = deployment.start_worker()
    family = psutil.Process(worker.pid).children(recursive=True)
    assert len(family) == 2
    deployment.send("greenroom.sweep")
    wait_for_sweep(valkey)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert not [process for process in family if process.is_running()]
    assert "Traceback" not in deployment.said()
    assert "Unclosed" not in deployment.said()


def test_the_last_worker_to_stop_leaves_no_session_in_line_and_no_room(
    deployment: Deployment, valkey: Valkey, livekit: LiveKitServer
) -> None:
    asyncio.run(livekit.create_room(SESSION))
    start = Start(proposed_id=SESSION, user_id="Ann", longest_ms=60_000, fleet_ceiling=9, user_ceiling=9)
    x.Exchange().run_sync(valkey.client, x.session_arrives(start))
    worker = deployment.start_worker()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert valkey.client.hget(keys.session(SESSION), "end_reason") == "shutdown"
    assert valkey.client.zcard(keys.SETTLE_DUE) == 0

    async def rooms() -> list[Any]:
        async with livekit.api() as service:
            return list((await service.room.list_rooms(api.ListRoomsRequest(names=[SESSION]))).rooms)

    assert asyncio.run(rooms()) == []


def test_a_worker_takes_its_own_queues_only_also_after_it_was_killed(deployment: Deployment, valkey: Valkey) -> None:
    worker = deployment.start_worker()
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    deployment.start_worker()
    deployment.send("greenroom.kill", "a", "n", queue="host.other", expires=60)
    with fake_launcher(deployment) as asked:
        deployment.send("greenroom.kill", "a", "n", queue=f"host.{HOST}")
        wait_until(lambda: asked, what="the launcher is asked")
        deployment.send("greenroom.sweep")
        wait_for_sweep(valkey)
    assert asked == [{"do": "kill", "agent_id": "a", "nonce": "n"}]
    assert deployment.lying("host.other") == 1


def test_a_worker_goes_on_when_its_broker_is_back(deployment: Deployment, valkey: Valkey) -> None:
    deployment.start_worker()
    valkey.kill()
    wait_until(lambda: "onnection" in deployment.said(), timeout=10, what="the worker notices")
    valkey.start()
    deployment.send("greenroom.kill", "a", "n", queue="host.other", expires=60)
    deployment.send("greenroom.sweep")
    wait_for_sweep(valkey)
    assert deployment.lying("host.other") == 1


def test_a_command_that_expired_does_nothing(deployment: Deployment, valkey: Valkey) -> None:
    deployment.send("greenroom.sweep", expires=-1)
    deployment.send("greenroom.prune", expires=20)
    valkey.client.zadd(keys.HOSTS, {"gone": 1})
    deployment.start_worker()
    wait_until(lambda: not valkey.client.exists(keys.HOSTS), timeout=10, what="the prune that came after is done")
    assert swept_at(valkey) == 0


def test_a_spawn_asks_the_launcher_for_this_agent(deployment: Deployment) -> None:
    deployment.start_worker()
    with fake_launcher(deployment) as asked:
        deployment.send("greenroom.spawn", "a_1", queue=f"host.{HOST}")
        wait_until(lambda: asked, what="the launcher is asked")
    assert asked[0]["do"] == "spawn"
    assert asked[0]["agent_id"] == "a_1"


def test_a_spawn_without_a_launcher_gives_the_slot_back_at_once(deployment: Deployment, valkey: Valkey) -> None:
    deployment.start_worker()
    host_is_seen(valkey)
    call = x.reserve_spawns(target=1, most=1, base="a")
    (agent,) = x.Exchange().run_sync(valkey.client, call).agents
    deployment.send("greenroom.spawn", agent.id, queue=f"host.{HOST}")
    wait_until(lambda: not valkey.client.exists(keys.host_agents(HOST)), what="the slot is free")
    assert valkey.client.hget(keys.agent(agent.id), "state") == "gone"


def test_a_task_that_fails_does_not_stop_the_worker(deployment: Deployment, valkey: Valkey) -> None:
    deployment.start_worker()
    valkey.client.set(keys.SETTLE_DUE, "not a sorted set", ex=60)
    deployment.send("greenroom.settle")
    deployment.send("greenroom.nonsense")
    deployment.send("greenroom.spawn", "too", "many", queue=f"host.{HOST}")
    wait_until(lambda: "given up" in deployment.said(), what="the fault is logged")
    deployment.send("greenroom.sweep")
    wait_for_sweep(valkey)
    valkey.client.delete(keys.SETTLE_DUE)


def test_a_tick_sweeps_although_another_part_of_it_fails(deployment: Deployment, valkey: Valkey) -> None:
    deployment.start_worker()
    valkey.client.set(keys.SETTLE_DUE, "not a sorted set", ex=60)
    deployment.send("greenroom.tick")
    wait_for_sweep(valkey)
    wait_until(lambda: "given up" in deployment.said(), what="the fault is logged")
    valkey.client.delete(keys.SETTLE_DUE)


# -- beat


def test_beat_stops_adding_to_a_queue_that_nobody_empties(deployment: Deployment) -> None:
    for _ in range(LONGEST_BACKLOG):
        deployment.send("greenroom.nothing")
    deployment.start(*BEAT)
    wait_until(lambda: "left out" in deployment.said(), timeout=START_SECONDS, what="beat leaves a tick out")
    assert deployment.lying() <= LONGEST_BACKLOG + len(PERIODS_SECONDS)


def test_two_beats_and_two_workers_do_no_harm(deployment: Deployment, valkey: Valkey) -> None:
    for _ in range(2):
        deployment.start_beat()
    for number in range(2):
        deployment.start_worker(f"{HOST}{number}")
    host_is_seen(valkey)
    for _ in range(3):
        wait_for_sweep(valkey)
    # The launcher is missing: each slot that was reserved for it came back, or is on its way.
    assert valkey.client.scard(keys.host_agents(HOST)) <= 3
    assert "Traceback" not in deployment.said()


def test_beat_goes_on_when_its_broker_is_back(deployment: Deployment, valkey: Valkey) -> None:
    beat = deployment.start_beat()
    valkey.kill()
    wait_until(lambda: "onnection" in deployment.said(), timeout=10, what="beat notices")
    valkey.start()
    deployment.broker.delete("celery:control")
    wait_until(lambda: deployment.lying() > 0, timeout=15, what="a tick comes again")
    beat.send_signal(signal.SIGTERM)
    assert beat.wait(10) == 0
    assert not list(deployment.folder.glob("celerybeat-schedule*"))


# -- what they keep


def test_what_celery_keeps_has_its_prefix_and_only_bindings_and_queues_stay(deployment: Deployment) -> None:
    deployment.start_beat()
    deployment.start_worker()
    names = list(deployment.broker.scan_iter())
    assert [name for name in names if not name.startswith("celery:")] == []
    without_ttl = [name for name in names if deployment.broker.ttl(name) == -1]
    queues = ("celery:control", f"celery:host.{HOST}", "celery:_kombu.binding", "celery:unacked")
    assert [name for name in without_ttl if not name.startswith(queues)] == []
