"""What the kernel says that an agent process may do, and what others may read of it."""

import os
import re
import stat
from pathlib import Path

import pytest

from backend.agent import process
from backend.common import keys
from tests.running_launcher import HOST, Launch
from tests.waiting import wait_until

METHODS = ("fork", "spawn")
SECRETS = {"LIVEKIT_API_SECRET": "opens-every-room", "API_KEYS": "opens-the-api", "GREENROOM_API_KEY": "opens-it-too"}
SECRETS |= {"API_KEYS_FILE": "/keys/of-the-api", "BROKER_URL": "redis://:opens-the-queues@celery:6379/1"}


def limits(pid: int) -> dict[str, tuple[str, str]]:
    """Each limit of a process by its name, soft and hard."""
    rows = re.findall(r"(?m)^(Max [a-z ]+?)\s{2,}(\S+)\s+(\S+)", Path(f"/proc/{pid}/limits").read_text())
    return {name: (soft, hard) for name, soft, hard in rows}


def status(pid: int, field: str) -> str:
    (found,) = re.findall(rf"(?m)^{field}:\s+(\S+)$", Path(f"/proc/{pid}/status").read_text())
    return str(found)


@pytest.mark.parametrize("method", METHODS)
def test_an_agent_gets_no_privileges_no_core_dump_and_no_more_than_its_share(launch: Launch, method: str) -> None:
    launcher = launch(AGENT_START_METHOD=method, AGENT_MEMORY_MB="3000", AGENT_FILES="100")
    agent = launcher.spawn("a", "talk")
    launcher.told("a")
    assert status(agent.pid, "NoNewPrivs") == "1"
    assert status(agent.pid, "Umask") == "0077"
    assert (os.getpgid(agent.pid), os.getsid(agent.pid)) == (agent.pid, agent.pid)
    share = limits(agent.pid)
    assert share["Max core file size"] == ("0", "0")
    assert share["Max open files"] == ("100", "100")
    assert share["Max address space"] == (str(3_000 * 1024**2),) * 2
    assert limits(launcher.pid)["Max core file size"] == ("0", "0")
    for pid in (launcher.pid, agent.pid):  # what a collector behind a pipe would get, whatever the limit
        assert int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16) == 0
    assert stat.S_IMODE((launcher.folder / "a.told").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("life", "error"), [("hog", "MemoryError in fake_bots.py"), ("hoard", "OSError in fake_bots.py")]
)
def test_an_agent_that_takes_more_than_its_share_ends_alone(launch: Launch, life: str, error: str) -> None:
    launcher = launch(AGENT_MEMORY_MB="2000", AGENT_FILES="100")
    other, agent = launcher.spawn("b", "talk"), launcher.spawn("a", life)
    launcher.arrive(agent)
    assert launcher.wait_for_report(agent) == "1"
    wait_until(lambda: error in launcher.valkey.client.hget(keys.host(HOST), "last_error"))
    assert process.start_time(other.pid)


@pytest.mark.parametrize("method", METHODS)
def test_no_secret_is_in_the_environment_of_a_launcher_or_an_agent(launch: Launch, method: str) -> None:
    launcher = launch(AGENT_START_METHOD=method, **SECRETS)
    agent = launcher.spawn("a", "talk")
    launcher.told("a")
    for pid in (launcher.pid, agent.pid):
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert f"HOST_ID={HOST}" in environment
        assert [name for name, secret in SECRETS.items() if name in environment or secret in environment] == []
