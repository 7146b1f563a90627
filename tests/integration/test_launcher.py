"""The launcher with real forks, real signals and a real Valkey: what it is told, and what becomes of its agents."""

import contextlib
import os
import signal
import stat
import time
from pathlib import Path

import psutil
import pytest

from backend.agent import process
from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment, EndReason, Start
from backend.common.launcher_socket import LauncherRefused
from backend.common.settings import LauncherSettings
from tests.fakes.fake_bots import QUOTED
from tests.running_launcher import HOST, Launch, RunningLauncher
from tests.waiting import wait_until

METHODS = ("fork", "spawn")
SENT = "a-rooms-token"


def is_gone(pid: int) -> bool:
    return process.start_time(pid) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_spawned_agent_is_the_process_that_was_answered(launch: Launch, method: str) -> None:
    launcher = launch(AGENT_START_METHOD=method)
    agent = launcher.spawn("a")
    state = launcher.state("a")
    assert (state["pid"], state["nonce"], state["host_id"]) == (agent.pid, agent.nonce, HOST)
    assert state["started"] == process.start_time(agent.pid)
    assert psutil.Process(agent.pid).ppid() == launcher.pid
    assert launcher.living() == ["a"]


def test_an_id_that_is_known_starts_no_second_process(launcher: RunningLauncher) -> None:
    first, ended = launcher.spawn("a"), launcher.spawn("b", "leave")
    launcher.arrive(ended)
    launcher.wait_for_report(ended)
    assert launcher.spawn("a") == first
    assert launcher.spawn("b", "leave") == ended
    assert launcher.living() == ["a"]


def test_the_launcher_is_the_ceiling(launch: Launch) -> None:
    launcher = launch(MAX_BOTS="2")
    agent = launcher.spawn("a")
    launcher.spawn("b")
    with pytest.raises(LauncherRefused, match="full: this host runs its MAX_BOTS of 2 agents"):
        launcher.spawn("c")
    launcher.ask(do="kill", agent_id="a", nonce=agent.nonce)
    wait_until(lambda: launcher.living() == ["b"])
    assert launcher.spawn("c").pid


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("life", "code"), [("leave", "0"), ("fail", "7")])
def test_an_exit_is_reported_with_its_code(launch: Launch, method: str, life: str, code: str) -> None:
    launcher = launch(AGENT_START_METHOD=method)
    agent = launcher.spawn("a", life)
    launcher.arrive(agent)
    assert launcher.wait_for_report(agent) == code
    wait_until(lambda: launcher.files() == [])


def test_an_exit_by_a_signal_is_reported_with_it(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a")
    launcher.arrive(agent)
    killed_at = time.monotonic()
    os.kill(agent.pid, signal.SIGKILL)
    assert launcher.wait_for_report(agent) == "-9"
    assert time.monotonic() - killed_at < 0.5  # at once, not at the next comparison


def test_a_crash_is_shown_by_its_kind_and_place_only(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a", "crash")
    launcher.arrive(agent)
    assert launcher.wait_for_report(agent) == "1"
    host = keys.host(HOST)
    error = wait_until(lambda: launcher.valkey.client.hget(host, "last_error"))
    assert error.startswith("a: RuntimeError in fake_bots.py:")
    assert QUOTED not in launcher.log.read_text()


def in_a_call(launcher: RunningLauncher, agent: Agent) -> str:
    """Give the agent a session; returns its id."""
    assert launcher.arrive(agent) == "warm"
    start = Start(proposed_id="s", user_id="u", longest_ms=60_000, fleet_ceiling=9, user_ceiling=9)
    launcher.exchange.run_sync(launcher.valkey.client, x.session_arrives(start))
    work = Assignment(session_id="s", generation=1)
    assert launcher.exchange.run_sync(launcher.valkey.client, x.confirm_claim(agent, work))
    return work.session_id


@pytest.mark.parametrize(("reason", "became"), [(None, ("waiting", None)), (EndReason.GOODBYE, ("ended", "goodbye"))])
def test_a_call_goes_on_without_its_agent_unless_that_said_why_not(
    launcher: RunningLauncher, reason: EndReason | None, became: tuple[str, str | None]
) -> None:
    agent = launcher.spawn("a")
    session_id = in_a_call(launcher, agent)
    settings = LauncherSettings(run_dir=launcher.folder, host_id=HOST, livekit_url="ws://localhost:1")
    process.leave_last_words(settings, "a", process.LastWords(end_reason=reason))
    os.kill(agent.pid, signal.SIGKILL)
    launcher.wait_for_report(agent)
    assert tuple(launcher.valkey.client.hmget(keys.session(session_id), "state", "end_reason")) == became


@pytest.mark.parametrize("method", METHODS)
def test_who_ignores_a_signal_to_stop_is_killed_with_its_children(launch: Launch, method: str) -> None:
    launcher = launch(AGENT_START_METHOD=method)
    agent = launcher.spawn("a", "ignore")
    launcher.arrive(agent)
    child = launcher.told("a")["child"]
    began = time.monotonic()
    for _ in range(2):  # twice changes nothing
        assert launcher.ask(do="kill", agent_id="a", nonce=agent.nonce)["was_running"]
    assert launcher.wait_for_report(agent) == "-9"
    assert process.TERM_SECONDS <= time.monotonic() - began < process.TERM_SECONDS + 1
    wait_until(lambda: is_gone(child))
    assert not launcher.ask(do="kill", agent_id="a", nonce=agent.nonce)["was_running"]


def test_only_the_right_nonce_kills(launcher: RunningLauncher) -> None:
    agent = launcher.spawn("a")
    assert not launcher.ask(do="kill", agent_id="a", nonce="x" + agent.nonce)["was_running"]
    assert launcher.status()["counts"] == {"starting": 1}
    assert not is_gone(agent.pid)


def test_what_an_agent_leaves_behind_is_ended(launcher: RunningLauncher) -> None:
    launcher.spawn("a", "fork")
    child = launcher.told("a")["child"]
    wait_until(lambda: is_gone(child))


@pytest.mark.parametrize("method", METHODS)
def test_an_agent_inherits_nothing_of_the_launchers(launch: Launch, method: str) -> None:
    launcher = launch(AGENT_START_METHOD=method)
    launcher.spawn("z")
    for agent_id in ("a", "b"):
        launcher.spawn(agent_id, "tell", SENT)
    told, other = launcher.told("a"), launcher.told("b")
    launchers = {file.path for file in psutil.Process(launcher.pid).open_files()}
    for path in Path(f"/proc/{launcher.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            launchers |= {os.readlink(path)} if int(path.name) > 2 else set()
    own = [target for target in told["descriptors"] if target not in launchers or "anon_inode" in target]
    assert sorted(told["descriptors"]) == sorted(own)
    assert len(own) == 3  # its event loop: a selector and a pair of sockets
    assert told["is_session_leader"]
    assert told["blocked"] == []
    assert told["on_child"]
    assert told["wakeup"] == -1
    assert told["core"] == [0, 0]
    assert told["room_token"] == SENT
    assert SENT not in str(told["arguments"])
    assert not set(told["random"]) & set(other["random"])


def test_twenty_agents_leave_no_zombie_and_no_descriptor(launcher: RunningLauncher) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{launcher.pid}/fd"))

    launcher.spawn("first", "leave")
    wait_until(lambda: launcher.living() == [])
    before = descriptors()
    for number in range(20):
        agent = launcher.spawn(f"a{number}")
        launcher.ask(do="kill", agent_id=agent.id, nonce=agent.nonce)
    wait_until(lambda: launcher.living() == [], timeout=10)
    wait_until(lambda: descriptors() <= before, what=f"{before} descriptors again")
    assert psutil.Process(launcher.pid).children() == []
    assert launcher.files() == []


def test_only_the_owner_reaches_the_launcher_and_the_states(launcher: RunningLauncher) -> None:
    launcher.spawn("a")
    launcher.state("a")
    folder = launcher.socket.parent
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, launcher.agents_folder)]
    modes += [stat.S_IMODE(path.stat().st_mode) for path in (launcher.socket, launcher.agents_folder / "a.json")]
    assert [oct(mode) for mode in modes] == ["0o700", "0o700", "0o600", "0o600"]


def test_nonsense_is_refused_and_harms_nobody(launcher: RunningLauncher) -> None:
    launcher.spawn("a")
    with pytest.raises(LauncherRefused, match="bad_request: do is one of spawn, kill, status"):
        launcher.ask(do="dance")
    with pytest.raises(LauncherRefused, match="bad_request: agent_id"):
        launcher.spawn("../a")
    assert launcher.living() == ["a"]


def test_an_agent_that_floods_its_log_does_not_slow_the_launcher(launch: Launch) -> None:
    launcher = launch()
    launcher.log.unlink()  # the flood goes where nobody keeps it
    agent = launcher.spawn("a", "flood")
    launcher.state("a")
    for _ in range(10):
        asked_at = time.monotonic()
        launcher.status()
        assert time.monotonic() - asked_at < 1
    launcher.ask(do="kill", agent_id="a", nonce=agent.nonce)
    wait_until(lambda: launcher.living() == [])


def test_a_second_launcher_of_a_host_says_so_and_leaves(launcher: RunningLauncher) -> None:
    second = RunningLauncher(launcher.folder, launcher.valkey)
    second.log = launcher.folder / "second.log"
    assert second.popen().wait(10) == 1
    lines = second.log.read_text().splitlines()
    assert lines == [f"another launcher runs for HOST_ID={HOST} in {launcher.folder}: stop it"]
    assert launcher.status()["ok"]


def test_a_path_that_no_socket_can_have_is_an_error_at_start(launcher: RunningLauncher) -> None:
    long = RunningLauncher(launcher.folder, launcher.valkey, RUN_DIR=str(launcher.folder / ("x" * 107)))
    long.log = launcher.folder / "long.log"
    assert long.popen().wait(10) == 1
    assert "the socket's path has more than 107 bytes" in long.log.read_text()
