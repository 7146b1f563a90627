"""Who holds the machine, and who waits for it."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.alone import on_the_machine
from tests.waiting import wait_until


class Machine:
    """Threads that hold the machine until they are let go; a lock of this kind knows no threads, only open files."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.holders: list[str] = []
        self._leave: dict[str, queue.Queue[None]] = {}
        self.threads: list[threading.Thread] = []

    def comes(self, name: str, *, alone: bool) -> None:
        self._leave[name] = queue.Queue()
        self.threads.append(threading.Thread(target=self._hold, args=(name, alone), daemon=True))
        self.threads[-1].start()

    def _hold(self, name: str, alone: bool) -> None:
        with on_the_machine(self._run_dir, alone=alone):
            self.holders.append(name)
            self._leave[name].get()
            self.holders.remove(name)

    def goes(self, name: str) -> None:
        self._leave[name].put(None)

    def is_held_by(self, *names: str) -> None:
        wait_until(lambda: sorted(self.holders) == sorted(names), what=f"{names} hold it")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for thread in machine.threads:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_tests_are_there_beside_each_other(machine: Machine) -> None:
    machine.comes("one", alone=False)
    machine.comes("other", alone=False)
    machine.is_held_by("one", "other")
    machine.goes("one")
    machine.goes("other")


def test_who_is_alone_waits_for_who_is_there_and_is_not_overtaken(machine: Machine, tmp_path: Path) -> None:
    machine.comes("first", alone=False)
    machine.is_held_by("first")
    machine.comes("alone", alone=True)
    _wait_until_someone_is_at_the_turnstile(tmp_path)
    machine.comes("later", alone=False)
    machine.goes("first")
    machine.is_held_by("alone")
    machine.goes("alone")
    machine.is_held_by("later")
    machine.goes("later")


def _wait_until_someone_is_at_the_turnstile(run_dir: Path) -> None:
    """As the kernel lists locks: the turnstile's is held, by one who waits for the machine."""
    inode = (run_dir / "tests.turnstile").stat().st_ino
    wait_until(lambda: f":{inode} " in Path("/proc/locks").read_text())
