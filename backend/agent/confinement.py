"""What an agent process may do: no new privileges, no core dump, bounded memory and files, nothing others can read."""

import ctypes
import os
import resource
import sys

from backend.common.privacy import keep_to_itself
from backend.common.settings import LauncherSettings

NOT_FOR_AGENTS = ("LIVEKIT_API_SECRET", "API_KEYS", "API_KEYS_FILE", "GREENROOM_API_KEY", "BROKER_URL")
"""Variables that open every room, the API or Celery's queues: who has them in the environment shows them in /proc."""
MB = 1024 * 1024

_PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 15, 38


def drop_secrets() -> None:
    """Take this program anew without what its children must not inherit, if that is in its environment."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_FOR_AGENTS}
    if len(kept) < len(os.environ):  # forgetting them would not do: the kernel shows what a process was started with
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept)  # noqa: S606  # ourselves


def confine(settings: LauncherSettings) -> None:
    """Bound this process, which is an agent from now on; what it starts is bounded as well."""
    keep_to_itself()
    _limit(resource.RLIMIT_NOFILE, settings.agent_files)
    if settings.agent_memory_mb:
        _limit(resource.RLIMIT_AS, settings.agent_memory_mb * MB)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_NAME, b"agent", 0, 0, 0)


def _limit(kind: int, most: int) -> None:
    """Lower a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))
