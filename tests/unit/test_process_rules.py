"""The rules by which a launcher tells its agents apart and decides about them."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.agent import process
from backend.agent.agents import complaint, is_idle
from backend.agent.host_record import STOP_MS, AgentRecord, must_end
from backend.agent.process import AgentProcess, State
from backend.common.contract import Agent, Ask, EndReason
from backend.common.launcher_socket import read_request
from backend.common.settings import LauncherSettings
from tests.waiting import wait_until

AGENT = Agent(id="a", nonce="n", host_id="h")


@pytest.fixture
def settings(tmp_path: Path) -> LauncherSettings:
    return LauncherSettings(run_dir=tmp_path, host_id="h", livekit_url="ws://localhost:1")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is nobody's agent."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("record", "is_wanted"),
    [
        (AgentRecord(nonce="n", state="warm"), True),
        (AgentRecord(nonce="n", state="busy"), True),
        (AgentRecord(nonce="n", state="stopping", stopping_ms=STOP_MS - 1), True),
        (AgentRecord(nonce="n", state="stopping", stopping_ms=STOP_MS), False),
        (AgentRecord(nonce="n", state="stopping"), True),
        (AgentRecord(nonce="n", state="gone"), False),
        (AgentRecord(nonce="other", state="gone"), True),
        (AgentRecord(nonce="other", state="stopping", stopping_ms=STOP_MS), True),
        (AgentRecord(nonce="", state="gone"), False),
        (AgentRecord(nonce="", state="starting"), True),
    ],
)
def test_a_process_must_end_when_its_own_record_says_so_for_long_enough(record: AgentRecord, is_wanted: bool) -> None:
    assert must_end(record, "n") is not is_wanted


def test_an_agent_is_idle_unless_its_record_or_its_deadline_says_otherwise(settings: LauncherSettings) -> None:
    process.write_state(settings, AGENT)
    (warm,) = process.read_states(settings)
    process.write_deadline(settings, "a", 1.0)
    (talking,) = process.read_states(settings)
    assert is_idle(AgentRecord(nonce="n", state="warm"), warm)
    assert not is_idle(AgentRecord(nonce="n", state="warm"), talking)
    assert not is_idle(AgentRecord(nonce="n", state="claimed"), warm)
    assert not is_idle(AgentRecord(nonce="n", state="stopping"), warm)
    assert is_idle(None, warm)
    assert is_idle(None, None)
    assert not is_idle(None, talking)


@pytest.mark.parametrize(("code", "text"), [(0, ""), (None, ""), (7, "exit code 7"), (-9, "signal 9")])
def test_an_exit_code_is_a_complaint_unless_all_was_well(code: int | None, text: str) -> None:
    assert complaint(code) == text


def test_a_state_names_the_process_that_wrote_it(settings: LauncherSettings) -> None:
    process.write_state(settings, AGENT)
    (state,) = process.read_states(settings)
    assert state.agent == Agent(id="a", nonce="n", host_id="h", pid=os.getpid())
    assert state.is_running()
    assert state.late_in(time.time()) is None
    assert (settings.host_dir / "agents" / "a.json").stat().st_mode & 0o777 == 0o600


def test_an_agent_is_late_some_time_after_its_deadline(settings: LauncherSettings) -> None:
    process.write_state(settings, AGENT)
    process.write_deadline(settings, "a", 1_000.0)
    (state,) = process.read_states(settings)
    assert state.late_in(1_000.0) == process.LATE_SECONDS
    process.write_deadline(settings, "a", None)
    (state,) = process.read_states(settings)
    assert state.late_in(1_000.0) is None


def test_an_agent_that_runs_alone_has_no_state_to_change(settings: LauncherSettings) -> None:
    process.write_deadline(settings, "a", 1_000.0)
    assert process.read_states(settings) == []


def test_last_words_add_up(settings: LauncherSettings) -> None:
    assert process.read_last_words(settings, "a") == process.LastWords()
    process.leave_last_words(settings, "a", process.LastWords(end_reason=EndReason.GOODBYE, ended_at_ms=5))
    process.leave_last_words(settings, "a", process.LastWords(exit_code=0))
    words = process.LastWords(exit_code=0, end_reason=EndReason.GOODBYE, ended_at_ms=5)
    assert process.read_last_words(settings, "a") == words
    process.forget(settings, "a")
    assert process.read_last_words(settings, "a") == process.LastWords()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"agent_id": "a"}', '{"exit_code": "x", "end_reason": "no such"}'])
def test_files_that_are_not_legible_harm_nobody(settings: LauncherSettings, text: str) -> None:
    process.write_state(settings, AGENT)
    (settings.host_dir / "agents" / "a.json").write_text(text)
    (settings.host_dir / "agents" / "a.exit").write_text(text)
    assert process.read_states(settings) == []
    assert not (settings.host_dir / "agents" / "a.json").exists()
    assert process.read_last_words(settings, "a") == process.LastWords()


def test_start_times_tell_processes_apart_that_have_the_same_pid(sleeper: "subprocess.Popen[bytes]") -> None:
    mine, other = process.start_time(os.getpid()), process.start_time(sleeper.pid)
    assert mine is not None
    assert other is not None
    assert other > mine


def test_a_zombie_does_not_live(sleeper: "subprocess.Popen[bytes]") -> None:
    assert process.start_time(sleeper.pid)
    sleeper.kill()
    wait_until(lambda: process.start_time(sleeper.pid) is None, what="it is a zombie")
    assert Path(f"/proc/{sleeper.pid}").exists()


def test_a_programs_name_cannot_forge_a_start_time(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 1 ("
    shutil.copy(shutil.which("sleep") or "sleep", program)
    with subprocess.Popen([program, "60"]) as forger:
        wait_until(lambda: ") R 1 1 (" in Path(f"/proc/{forger.pid}/stat").read_text(), what="it has its name")
        started = process.start_time(forger.pid)
        forger.kill()
    assert started
    assert started > 1_000


@pytest.mark.parametrize("change", [{"started": 1}, {"boot_id": "another"}, {"pid": 2**22 - 1}])
def test_only_the_very_process_is_adopted(settings: LauncherSettings, change: dict[str, str | int]) -> None:
    process.write_state(settings, AGENT)
    path = settings.host_dir / "agents" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (state,) = process.read_states(settings)
    assert AgentProcess.adopt(state) is None


def test_the_ladder_spares_a_process_that_took_the_group_number(sleeper: "subprocess.Popen[bytes]") -> None:
    agent = Agent(id="a", nonce="n", host_id="h", pid=sleeper.pid)
    ours = AgentProcess(agent, started=1, spawned_at=0.0, is_child=False)
    assert ours.reap() is None
    assert sleeper.poll() is None


def test_a_state_can_be_read_while_it_is_written(settings: LauncherSettings) -> None:
    process.write_state(settings, AGENT)
    (state,) = process.read_states(settings)
    (settings.host_dir / "agents" / ".b.json.1").write_text("{")
    assert process.read_states(settings) == [State(**vars(state))]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"\xff\xfe",
        b"[" * 10_000,
        b"[]",
        b"{}",
        b'{"do": 1}',
        b'{"do": "dance"}',
        b'{"do": "spawn"}',
        b'{"do": "spawn", "agent_id": "../x"}',
        b'{"do": "spawn", "agent_id": ".x"}',
        b'{"do": "spawn", "agent_id": "a", "nonce": "n"}',
        b'{"do": "kill", "agent_id": "a"}',
        b'{"do": "status", "agent_id": "a"}',
        b'{"do": "kill", "agent_id": "a", "nonce": {"token": "secret"}}',
    ],
)
def test_a_wrong_request_is_refused_without_quoting_it(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(not|do is|spawn must|kill must|status must|agent_id is)") as error:
        read_request(line)
    assert "secret" not in str(error.value)


def test_a_right_request_is_read() -> None:
    assert read_request(b'{"do": "status"}') == (Ask.STATUS, {})
    line = b'{"do": "spawn", "agent_id": "a.b-c_1", "room": "r", "room_token": "t"}'
    assert read_request(line) == (Ask.SPAWN, {"agent_id": "a.b-c_1", "room": "r", "room_token": "t"})
