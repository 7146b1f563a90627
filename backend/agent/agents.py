"""The agents of a host: who runs, who has ended, who must end. What the launcher's loop does to them."""

import selectors
import time
from collections import OrderedDict
from collections.abc import Mapping
from secrets import token_hex

from loguru import logger

from backend.agent import children, image, process
from backend.agent.host_record import AgentRecord, ExitReport, HostRecord, must_end
from backend.agent.memory import Memory
from backend.agent.process import AgentProcess, LastWords, State
from backend.agent.restraint import STEADY_SECONDS, Restraint
from backend.common.contract import Agent, AgentState, EndReason
from backend.common.settings import LauncherSettings

LOOK_SECONDS = 2.0
IN_CALL = (AgentState.CLAIMED, AgentState.BUSY)
SERVED = (AgentState.WARM, *IN_CALL, AgentState.STOPPING)
"""Whoever was seen in one of these has arrived."""
EARLY = "ended before it was ready"
REMEMBERED = 1_000
"""Ended agents whose ids are still known: for longer than a command can be late."""


def is_idle(record: AgentRecord | None, state: State | None) -> bool:
    """Whether an agent has no session, as far as is known; a deadline comes with a session."""
    if state is not None and state.deadline is not None:
        return False  # whatever Redis says: it may have forgotten
    return record is None or record.state in (AgentState.STARTING, AgentState.WARM)


def complaint(exit_code: int | None) -> str:
    """What went wrong, by the exit code alone; '' when nothing did, or nobody knows."""
    if not exit_code:
        return ""
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"


def _report(agent: Agent, code: int | None, words: LastWords, reason: EndReason | None) -> ExitReport:
    return ExitReport(agent=agent, exit_code=code, end_reason=reason, ended_at_ms=words.ended_at_ms)


class Agents:
    """Every agent of this host, child or adopted. ``host`` hears of their ends, ``selector`` waits for them."""

    def __init__(self, settings: LauncherSettings, host: HostRecord, selector: selectors.BaseSelector) -> None:
        self._settings, self._host, self._selector = settings, host, selector
        self._memory = Memory()
        self.restraint = Restraint(reserve_mb=settings.memory_reserve_mb)
        self.has_news = False
        """Whether Redis should hear of this host before the next look."""
        self._is_closing = False
        self._living: dict[str, AgentProcess] = {}
        self._ended: OrderedDict[str, Agent] = OrderedDict()
        self._states: Mapping[str, State] = {}
        self._records: Mapping[str, AgentRecord] = {}
        """What Redis said when it was last asked; empty when it did not answer."""
        self._can_tell = False
        """Whether Redis answered: else nobody knows who had arrived."""
        self.strangers: set[int] = set()
        """Children of this process that are no agents."""
        self._old: set[str] = set()
        """Who has code of before the renewal: they finish their calls, and get no further one."""

    def __len__(self) -> int:
        """How many processes live, in whatever state."""
        return len(self._living)

    def find(self, agent_id: str) -> Agent | None:
        """The agent of this id, if it lives or has ended lately."""
        return self._living[agent_id].agent if agent_id in self._living else self._ended.get(agent_id)

    def start(self, agent_id: str, *, room: str, room_token: str, starter: image.Starter) -> Agent:
        """Start an agent; raises OSError when the system has no process left for it."""
        agent = Agent(id=agent_id, nonce=token_hex(8), host_id=self._settings.host_id)
        pid = starter(image.Order(agent=agent, room=room, room_token=room_token))
        child = AgentProcess.of_child(agent, pid)
        self._watch(child)
        self.restraint.started(agent_id)
        logger.info("agent started", agent_id=agent_id, pid=pid)
        return child.agent

    def room(self) -> int | None:
        """How many more agents may be started now; None: as many as there are slots."""
        return self.restraint.room(sum(not self._has_arrived(agent_id) for agent_id in self._living))

    def kill(self, agent_id: str, nonce: str) -> bool:
        """Begin the kill ladder for that very process; False when it does not run."""
        child = self._living.get(agent_id)
        if child is None or child.agent.nonce != nonce:
            return False
        self._end(child, "it was to be killed")
        return True

    def end_all(self) -> None:
        """Begin the kill ladder for everyone; their sessions end with them."""
        self._is_closing = True
        for child in self._living.values():
            self._end(child, "the launcher stops")

    def end_idle(self) -> None:
        """Begin the kill ladder for those that have no session."""
        for agent_id, child in self._living.items():
            if is_idle(self._records.get(agent_id), self._states.get(agent_id)):
                self._end(child, "the launcher stops, and it has no session")

    def rows(self) -> list[dict[str, object]]:
        """Who lives, for people and tests."""
        now = time.time()
        return [
            {
                "agent_id": agent_id,
                "pid": child.agent.pid,
                "seconds": round(max(0.0, now - child.spawned_at), 1),
                "state": self._state_of(child),
            }
            for agent_id, child in self._living.items()
        ]

    def replace_old(self) -> None:
        """Let whoever lives now be replaced, one warm agent after the other; who is in a call finishes it."""
        self._old = set(self._living)

    def look_at_states(self) -> float:
        """Read the state files: adopt who is not known, end who is late; returns seconds until the next look."""
        known = self.strangers | {child.agent.pid for child in self._living.values()}
        codes = children.reap_unknown(known)
        self._states = {state.agent_id: state for state in process.read_states(self._settings)}
        unreported = {report.agent.id for report in self._host.waiting}
        for state in self._states.values():
            if state.agent_id not in self._living and state.agent_id not in unreported:
                self._adopt(state, codes.get(state.pid))
        now, next_look = time.time(), LOOK_SECONDS
        for agent_id, child in self._living.items():
            late_in = self._states[agent_id].late_in(now) if agent_id in self._states else None
            if late_in is None or child.kill_at is not None:
                continue
            if late_in <= 0:
                self._end(child, "it outlived its deadline")
            else:
                next_look = min(next_look, late_in)
        return next_look

    def compare(self, *, is_open: bool) -> None:
        """End whom Redis wants gone, and tell it of this host."""
        agents = [child.agent for child in self._living.values()]
        leaving = self._next_old() if is_open else list(self._living)
        answer = self._host.read_agents(agents, leaving=leaving)
        self._records, self._can_tell = answer or {}, answer is not None
        for agent_id, record in self._records.items():
            child = self._living[agent_id]
            if must_end(record, child.agent.nonce):
                self._end(child, f"its record says {record.state}")
            elif is_open and agent_id in leaving and record.state == AgentState.WARM:
                self._end(child, "it has the code of before the renewal")
        if answer is not None:
            pids = {child.agent.pid: self._state_of(child) for child in self._living.values()}
            self._host.memory = self._memory.look(pids)
            arrived = list(filter(self._has_arrived, self._living))
            self.restraint.ready(arrived, steady_ids=list(filter(self._is_steady, arrived)))
            self._host.trouble = self.restraint.trouble() or ""
            self._host.publish(agents=len(agents), room=self.room(), is_open=is_open)
        self.has_news = False

    def _next_old(self) -> list[str]:
        """One agent that is to be replaced, and was warm when last seen."""
        self._old &= self._living.keys()
        warm = {agent_id for agent_id, record in self._records.items() if record.state == AgentState.WARM}
        return sorted(self._old & warm)[:1]

    def press(self, now: float) -> None:
        """Take every ladder's next step; ``now`` by the monotonic clock."""
        for child in self._living.values():
            child.press(now)

    def next_step(self) -> float | None:
        """When ``press`` is due, by the monotonic clock."""
        return min((child.kill_at for child in self._living.values() if child.kill_at is not None), default=None)

    def notice_exits(self) -> None:
        """For systems whose selectors cannot wait for a process."""
        for child in [child for child in self._living.values() if child.pidfd is None and child.has_exited()]:
            self._on_exit(child)

    def _adopt(self, state: State, reaped_code: int | None) -> None:
        found = AgentProcess.adopt(state)
        if found:
            self._watch(found)
            logger.info("agent adopted", agent_id=state.agent_id, pid=state.pid)
            return
        if state.boot_id == process.boot_id():
            process.kill_group(state.pid, state.started)
        words = process.read_last_words(self._settings, state.agent_id)
        code = words.exit_code if reaped_code is None else reaped_code
        logger.warning("agent ended without a launcher", agent_id=state.agent_id, exit_code=code)
        self._host.report(_report(state.agent, code, words, words.end_reason), error=words.error)

    def _watch(self, child: AgentProcess) -> None:
        self._living[child.agent.id] = child
        if child.pidfd is not None:
            self._selector.register(child.pidfd, selectors.EVENT_READ, lambda _mask: self._on_exit(child))

    def _on_exit(self, child: AgentProcess) -> None:
        if child.pidfd is not None:
            self._selector.unregister(child.pidfd)
        code = child.reap()
        agent_id = child.agent.id
        self._remember(self._living.pop(agent_id).agent)
        words = process.read_last_words(self._settings, agent_id)
        code = words.exit_code if code is None else code
        error = "" if child.kill_at is not None else words.error or complaint(code)
        if self._can_tell and child.kill_at is None and not self._has_session(agent_id):
            has_arrived = self._has_arrived(agent_id)
            if not has_arrived or (error and time.time() - child.spawned_at < STEADY_SECONDS):
                error = error or EARLY
                self.restraint.failed(agent_id, was_ready=has_arrived)
                self.has_news = True
        self.restraint.ended(agent_id)
        log = logger.warning if error else logger.info
        log("agent exited", agent_id=agent_id, exit_code=code, end_reason=words.end_reason, error=error)
        reason = words.end_reason or (EndReason.SHUTDOWN if self._is_closing else None)
        self._host.report(_report(child.agent, code, words, reason), error=error)

    def _has_arrived(self, agent_id: str) -> bool:
        record = self._records.get(agent_id)
        return record is not None and record.state in SERVED

    def _is_steady(self, agent_id: str) -> bool:
        is_old = time.time() - self._living[agent_id].spawned_at >= STEADY_SECONDS
        return is_old or self._records[agent_id].state in IN_CALL

    def _has_session(self, agent_id: str) -> bool:
        """Whether it had one: in Redis when that was last asked, or by the session's deadline."""
        record = self._records.get(agent_id)
        if record is not None and record.state in (*IN_CALL, AgentState.STOPPING):
            return True
        states = process.read_states(self._settings)
        return any(state.agent_id == agent_id and state.deadline is not None for state in states)

    def _remember(self, agent: Agent) -> None:
        self._ended[agent.id] = agent
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _end(self, child: AgentProcess, why: str) -> None:
        if child.kill_at is None:
            logger.info("agent is ended", agent_id=child.agent.id, why=why)
            child.end()

    def _state_of(self, child: AgentProcess) -> str:
        if child.kill_at is not None:
            return AgentState.STOPPING
        record = self._records.get(child.agent.id)
        return record.state if record else AgentState.STARTING
