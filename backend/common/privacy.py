"""What every program of the house does first, so that nothing it writes shows others what it holds."""

import os
import resource
from contextlib import suppress
from pathlib import Path

_DUMPED = Path("/proc/self/coredump_filter")


def keep_to_itself() -> None:
    """Let this process, and what it starts, write for its owner only, and dump no core: it holds prompts and tokens."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The limit does not hold where core_pattern is a pipe to a collector: then no memory goes through it.
    with suppress(OSError):  # macOS has no such file, and a container's may be read-only
        _DUMPED.write_text("0")
