"""What the launcher and its agents use of the host's memory.

One process a look: the kernel walks all of its pages to answer, 2-3 ms for 100 MB, and the launcher does nothing else
meanwhile. So who is known is measured again only at each tenth look. A figure
is PSS: own pages, and of those that are shared with the launcher's image and with other agents the process' share.
"""

import os
import re
from collections.abc import Mapping

from backend.common.contract import AgentState

AGAIN_LOOKS = 10
LAUNCHER = "launcher"
STATES = {AgentState.WARM: "warm", AgentState.CLAIMED: "busy", AgentState.BUSY: "busy", LAUNCHER: LAUNCHER}
"""What is told apart; an agent on its way in or out is not measured."""


def read_pss_bytes(pid: int) -> int | None:
    """Ask the kernel; None when the process is gone, is not ours, or the system has no such file."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            found = re.search(r"^Pss:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


class Memory:
    """The last figure of each process, as long as its state is the one it was taken in."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[str, int | None]] = {}
        """By pid, the oldest first."""
        self._looks = 0

    def look(self, states: Mapping[int, str]) -> dict[str, int]:
        """Measure one process at most; return what all weigh: ``warm_memory_bytes`` of ``warm_measured`` processes.

        ``states`` are those of every agent, by pid.
        """
        now = {os.getpid(): LAUNCHER}
        now |= {pid: STATES[AgentState(state)] for pid, state in states.items() if state in STATES}
        self._taken = {pid: taken for pid, taken in self._taken.items() if now.get(pid) == taken[0]}
        self._looks += 1
        next_pid = next((pid for pid in now if pid not in self._taken), None)
        if next_pid is None and self._looks % AGAIN_LOOKS == 0:
            next_pid = next(iter(self._taken))
        if next_pid is not None:
            self._taken.pop(next_pid, None)
            self._taken[next_pid] = (now[next_pid], read_pss_bytes(next_pid))
        return self._add_up()

    def _add_up(self) -> dict[str, int]:
        figures: dict[str, int] = {}
        for name in dict.fromkeys(STATES.values()):
            found = [figure for state, figure in self._taken.values() if state == name and figure is not None]
            figures |= {f"{name}_memory_bytes": sum(found), f"{name}_measured": len(found)}
        return figures
