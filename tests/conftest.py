"""What all tests share: a real Valkey, and the check that a test leaves nothing behind."""

import faulthandler
import gc
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import redis

from tests import leaks
from tests.alone import on_the_machine
from tests.valkey_server import Valkey

TIMEOUT_SECONDS = 20
ACCEPTANCE_TIMEOUT_SECONDS = 180
HANG_SECONDS = 400
"""Longer than any test and its fixtures may take."""
ACCEPTANCE = Path(__file__).parent / "acceptance"
MARKERS = (
    "acceptance: the whole product; every test in tests/acceptance has it",
    "alone: fills both cores by itself; the other workers pause meanwhile",
    "keeps_descriptors_closed: fails when the test leaves a descriptor open in this process",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    leaks.mark_descendants()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the acceptance tests, and give each test the time that its kind may take."""
    for item in items:
        is_acceptance = item.path.is_relative_to(ACCEPTANCE)
        if is_acceptance:
            item.add_marker("acceptance")
        if not item.get_closest_marker("timeout") and config.getoption("timeout", None) is None:
            item.add_marker(pytest.mark.timeout(ACCEPTANCE_TIMEOUT_SECONDS if is_acceptance else TIMEOUT_SECONDS))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let what is ``alone`` be alone, before its time begins to run.

    The run ends, with every stack, when a test hangs where its own timeout does not reach: in a task's exception.
    """
    alone = item.get_closest_marker("alone") is not None
    has_others = hasattr(item.config, "workerinput")
    with on_the_machine(item.config.rootpath / ".run", alone=alone) if has_others else nullcontext():
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("acceptance") and not hasattr(report, "wasxfail"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.path.is_relative_to(ACCEPTANCE):
        _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where REQUIRE_ACCEPTANCE=1 says that everything is installed, what cannot run is a failure."""
    if report.outcome == "skipped" and os.environ.get("REQUIRE_ACCEPTANCE") == "1":
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_ACCEPTANCE=1, but this was skipped: {report.longrepr}"


@pytest.fixture(scope="session")
def _running_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.client.close()
    server.kill()


@pytest.fixture
def valkey(_running_valkey: Valkey) -> Iterator[Valkey]:
    """Give a running, empty server; afterwards every key must have a TTL, or a reason in ``keys.TABLE`` to have none.

    A test may kill it or freeze it: it is put right again.
    """
    _running_valkey.heal()
    _running_valkey.client.flushall()
    yield _running_valkey
    _running_valkey.heal()
    with redis.Redis.from_url(_running_valkey.broker_url, decode_responses=True) as broker:
        left = leaks.leaked_keys(_running_valkey.client) + leaks.foreign_keys(broker)
    _running_valkey.client.flushall()
    _running_valkey.client.connection_pool.disconnect()
    assert not left, f"keys that would stay: {left}"


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = leaks.processes()
    yield
    left = leaks.leaked_processes(before)
    assert not left, f"processes that were left behind, and have been killed: {left}"


@pytest.fixture(autouse=True)
def _no_descriptor_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("keeps_descriptors_closed") is None:
        yield
        return
    before = leaks.descriptors()
    yield
    gc.collect()  # what nobody holds any more is not a leak
    left = leaks.leaked_descriptors(before)
    assert not left, f"descriptors that were left open: {left}"
