"""Tests that need the machine for themselves: the other workers of the run pause meanwhile, between two tests."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def on_the_machine(run_dir: Path, *, alone: bool) -> Iterator[None]:
    """Hold the machine, alone or beside others, who come first, go first.

    Who wants to be alone waits for those who are there, at the turnstile that those who come later do not pass.
    """
    run_dir.mkdir(exist_ok=True)
    with (run_dir / "tests.turnstile").open("w") as turnstile, (run_dir / "tests.machine").open("w") as machine:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)  # also what a fork of this process has inherited
