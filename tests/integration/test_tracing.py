"""Traces: what is imported when they are off and when they are on, and what a collector can do to us."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.fakes.fake_collector import FakeCollector, collecting
from tests.livekit_server import LiveKitServer
from tests.valkey_server import Valkey, free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SOMEWHERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
IMAGE = """
import json, os, sys
from backend.agent import image
from backend.common.settings import LauncherSettings
image.load(LauncherSettings())
told = {"sdk": "opentelemetry.sdk" in sys.modules, "tasks": len(os.listdir("/proc/self/task"))}
from pipecat.utils.tracing.setup import is_tracing_available
print(json.dumps(told | {"pipecat": is_tracing_available()}))
"""
API = """
import json, sys
from backend.common import tracing
from backend.common.settings import ApiSettings
from backend.orchestrator import api
settings = ApiSettings()
tracing.start(settings, "api")
api.create_app(settings)
print(json.dumps("opentelemetry.sdk" in sys.modules))
"""
PROGRAM = """
import sys, time
from backend.common import logs, tracing
from backend.common.settings import CommonSettings
settings = CommonSettings()
logs.configure(settings, program="test")
tracing.start(settings, "test")
with tracing.begin("work", sys.argv[1], session_id="s") as trace:
    trace.stage("first")
    trace.stage("second")
{more}
began_at = time.monotonic()
tracing.stop()
print(time.monotonic() - began_at)
"""


@pytest.fixture
def collector() -> Iterator[FakeCollector]:
    with collecting() as collector:
        yield collector


def run(program: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, which must be a good one."""
    environment = (
        os.environ | {"PYTHONPATH": str(ROOT), "LOG_FORMAT": "json", "LIVEKIT_URL": "ws://nowhere"} | variables
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=19, check=True)


def trace(collector: FakeCollector, parent: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    return run(PROGRAM.format(more=""), parent, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variables)


@pytest.mark.parametrize(
    "variables",
    [{}, {**SOMEWHERE, "OTEL_TRACES_EXPORTER": "none"}, {**SOMEWHERE, "OTEL_SDK_DISABLED": "true"}],
    ids=["unset", "none", "disabled"],
)
def test_the_image_of_the_agents_holds_no_sdk_while_traces_are_off(
    variables: dict[str, str], no_variables: None
) -> None:
    told = json.loads(run(IMAGE, **variables).stdout.splitlines()[-1])
    assert told == {"sdk": False, "tasks": 1, "pipecat": False}


def test_the_image_holds_the_sdk_while_traces_are_on_and_still_no_thread_of_it(no_variables: None) -> None:
    told = json.loads(run(IMAGE, **SOMEWHERE).stdout.splitlines()[-1])
    assert told == {"sdk": True, "tasks": 1, "pipecat": False}


def test_the_api_imports_no_sdk_while_traces_are_off(no_variables: None) -> None:
    known = {"LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": "secret" * 6}
    assert json.loads(run(API, **known).stdout) is False
    assert json.loads(run(API, **known, **SOMEWHERE).stdout) is True


def test_a_span_goes_where_it_is_told_with_its_stages_and_its_service(collector: FakeCollector) -> None:
    trace(collector, OTEL_SERVICE_NAME="reception", OTEL_EXPORTER_OTLP_HEADERS="x-key=sesame")
    first, second, work = sorted(collector.spans, key=lambda span: span.ended_at_ns)
    assert [span.name for span in (first, second, work)] == ["first", "second", "work"]
    assert (first.began_at_ns, first.ended_at_ns) == (work.began_at_ns, second.began_at_ns)
    assert {span.parent_id for span in (first, second)} == {work.span_id}
    assert {span.service for span in collector.spans} == {"reception"}
    assert work.attributes == {"session_id": "s"}
    assert collector.headers[0]["x-key"] == "sesame"


@pytest.mark.parametrize("parent", ["", "nonsense", "00-zz-zz-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_parent_that_is_none_begins_a_trace(collector: FakeCollector, parent: str) -> None:
    trace(collector, parent)
    (work,) = [span for span in collector.spans if span.name == "work"]
    assert work.parent_id == ""


def test_a_client_that_does_not_sample_its_trace_gets_no_spans(collector: FakeCollector) -> None:
    trace(collector, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
    assert collector.spans == []


def test_a_failure_is_told_by_its_kind_and_not_by_its_message(collector: FakeCollector) -> None:
    failing = """
try:
    with tracing.begin("failing"):
        raise ValueError("swordfish")
except ValueError:
    pass
"""
    run(PROGRAM.format(more=failing), "", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    (span,) = [span for span in collector.spans if span.name == "failing"]
    assert span.error == "ValueError"
    assert b"swordfish" not in collector.received


def test_a_collector_that_refuses_is_one_line_in_the_log(no_variables: None) -> None:
    many = """
for _ in range(3):
    time.sleep(0.3)
    with tracing.begin("more"):
        pass
"""
    variables = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.1"}
    endpoint = f"http://127.0.0.1:{free_port()}"
    ended = run(PROGRAM.format(more=many), "", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **variables)
    (line,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert line["message"] == "the collector takes no traces: they are dropped"


def test_a_collector_that_never_answers_holds_up_no_end(no_variables: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ended = run(PROGRAM.format(more=""), "", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert 0.2 < float(ended.stdout) < 1.5


def test_a_start_that_is_refused_is_a_failed_span(
    valkey: Valkey, livekit: LiveKitServer, collector: FakeCollector, tmp_path: Path, no_variables: None
) -> None:
    port = free_port()
    known = {"REDIS_URL": valkey.url, "LIVEKIT_URL": livekit.url, "PORT": str(port), "PYTHONPATH": str(ROOT)}
    known |= {"LIVEKIT_API_KEY": livekit.key, "LIVEKIT_API_SECRET": livekit.secret, "MAX_WAITING": "0"}
    known |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    api = subprocess.Popen(
        [sys.executable, "-m", "backend.orchestrator.api"], cwd=tmp_path, env=os.environ | known, stderr=subprocess.PIPE
    )
    wait_until(lambda: start(port) == 429, timeout=15, what="a start is refused")
    api.terminate()
    ended_at = time.monotonic()
    api.communicate(timeout=10)
    assert time.monotonic() - ended_at < 5
    spans = {span.name: span for span in collector.spans}
    assert spans["start"].error == "FullError"
    assert spans["admission"].parent_id == spans["start"].span_id
    assert b"Ada" not in collector.received


def start(port: int) -> int:
    """Ask for a session; 0 while nobody listens."""
    body: dict[str, Any] = {"userName": "Ada"}
    try:
        return httpx.post(f"http://127.0.0.1:{port}/orchestrator/session/start", json=body, timeout=5).status_code
    except httpx.ConnectError:
        return 0
