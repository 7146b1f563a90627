"""The launcher: the parent process of every agent on a host. It starts, watches and stops them, and does nothing else.

One thread, one loop: the socket, the exits, the signals, and every two seconds a comparison of what runs
here with what Redis wants. It may die at any moment: agents live on, and the next launcher adopts them.
SIGTERM drains, a second one ends everyone; SIGHUP takes new code while the agents talk on.
"""

import fcntl
import os
import resource
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from secrets import token_hex

from loguru import logger

from backend.agent import image
from backend.agent.agents import Agents
from backend.agent.confinement import drop_secrets
from backend.agent.host_record import HostRecord
from backend.common import logs, renewal
from backend.common.contract import Ask, Trouble
from backend.common.launcher_socket import PATH_BYTES, Answer, Server, read_request, refusal
from backend.common.privacy import keep_to_itself
from backend.common.settings import LauncherSettings, read

DRAINING_TICK_SECONDS = 0.5
LAST_REPORTS_SECONDS = 2.0
"""How long a launcher without agents waits for Redis before it leaves its reports to the next one."""
OLD_LOGS_SECONDS = 3_600.0
REFUSALS = {
    Trouble.MEMORY: "less than MEMORY_RESERVE_MB is left on this host",
    Trouble.CRASHES: "agents end before they are ready, the next one is tried later: see last_error of the host",
}
SPARE_DESCRIPTORS = 256
"""Beside one for each agent: clients, Redis, and what libraries open."""


class Launcher:
    """The loop, and what it is told: by commands and by signals."""

    def __init__(self, settings: LauncherSettings) -> None:
        self._settings = settings
        self._nonce = token_hex(8)
        self._host = HostRecord(settings, nonce=self._nonce)
        self._selector = selectors.DefaultSelector()
        self.agents = Agents(settings, self._host, self._selector)
        self._stop_signals = 0
        self._is_renewal_wanted = False
        self._trial: renewal.Trial | None = None
        self._drain_until: float | None = None
        """By the monotonic clock; None while the launcher takes orders."""
        self._leave_at: float | None = None
        self._next_tick = 0.0
        self._next_old_logs = 0.0

    def hear_signals(self) -> None:
        """From now on a signal to stop is a request to drain."""
        self._wakeup, written = socket.socketpair()
        for end in (self._wakeup, written):
            end.setblocking(False)
        # Without it, a signal between two statements would wait for the next event.
        signal.set_wakeup_fd(written.detach(), warn_on_full_buffer=False)
        self._selector.register(self._wakeup, selectors.EVENT_READ, lambda _mask: self._wakeup.recv(4096))
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only wakes the loop
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGHUP, self._on_renewal_signal)
        renewal.hear_stops()

    def run(self, starter: image.Starter, lock: int) -> None:
        """Do as told, until told to stop and no agent is left; ``lock`` is this host's."""
        self._starter = starter
        server = Server(self._settings.launcher_socket, self._selector, self._answer)
        logger.info("launcher is ready", capacity=self._settings.max_bots, adopted=len(self.agents))
        while not self._is_over(time.monotonic()):
            for key, mask in self._selector.select(self._seconds_to_next()):
                key.data(mask)
            now = time.monotonic()
            self.agents.notice_exits()
            self._heed_stop_signals(now)
            if self._may_renew():
                self._renew(server, lock)
            if now >= self._next_tick or self.agents.has_news:
                server.drop_stalled(now)
                self._tick(now)
            self.agents.press(now)
        server.close()
        self._host.withdraw()
        logger.info("launcher has stopped", unreported=len(self._host.waiting))

    def _answer(self, line: bytes) -> Answer:
        try:
            ask, fields = read_request(line)
        except ValueError as error:
            return refusal("bad_request", str(error))
        if ask is Ask.SPAWN:
            return self._spawn(fields["agent_id"], fields.get("room", ""), fields.get("room_token", ""))
        if ask is Ask.KILL:
            agent_id, nonce = fields["agent_id"], fields["nonce"]
            return {"ok": True, "agent_id": agent_id, "was_running": self.agents.kill(agent_id, nonce)}
        return self._status()

    def _spawn(self, agent_id: str, room: str, room_token: str) -> Answer:
        agent = self.agents.find(agent_id)
        if agent is None and self._drain_until is not None:
            return refusal("draining", "this launcher is stopping: ask another host")
        if agent is None and len(self.agents) >= self._settings.max_bots:
            return refusal("full", f"this host runs its MAX_BOTS of {self._settings.max_bots} agents")
        if agent is None and self.agents.room() == 0:
            trouble = self.agents.restraint.trouble()
            return refusal(str(trouble), REFUSALS[trouble] if trouble else "")
        try:
            agent = agent or self.agents.start(agent_id, room=room, room_token=room_token, starter=self._starter)
        except OSError as error:
            logger.error("an agent could not be started", agent_id=agent_id, error=error.strerror)
            return refusal("start_failed", f"the system gives no process: {error.strerror}")
        return {"ok": True, "agent_id": agent.id, "pid": agent.pid, "nonce": agent.nonce}

    def _status(self) -> Answer:
        rows = self.agents.rows()
        return {
            "ok": True,
            "host_id": self._settings.host_id,
            "nonce": self._nonce,
            "capacity": self._settings.max_bots,
            "is_draining": self._drain_until is not None,
            "unreported": len(self._host.waiting),
            "counts": dict(Counter(str(row["state"]) for row in rows)),
            "agents": rows,
        }

    def _tick(self, now: float) -> None:
        is_open = self._drain_until is None
        next_look = self.agents.look_at_states()
        self.agents.compare(is_open=is_open)
        if not is_open:
            self.agents.end_idle()
        self._host.send_reports()
        self._next_tick = now + (next_look if is_open else min(next_look, DRAINING_TICK_SECONDS))
        if now >= self._next_old_logs:
            self._next_old_logs = now + OLD_LOGS_SECONDS
            remove_old_logs(self._settings)

    def _on_stop_signal(self, *_: object) -> None:
        self._stop_signals += 1

    def _heed_stop_signals(self, now: float) -> None:
        if self._stop_signals and self._drain_until is None:
            self._drain_until = now + self._settings.drain_timeout_seconds
            self._next_tick = now
            logger.info("launcher is draining", agents=len(self.agents))
        if self._drain_until is not None and (self._stop_signals > 1 or now >= self._drain_until):
            self.agents.end_all()

    def _on_renewal_signal(self, *_: object) -> None:
        self._is_renewal_wanted = True

    def _may_renew(self) -> bool:
        """Whether new code is there, and starts. Until then everything goes on as before."""
        if self._drain_until is not None:
            return self._drop_trial()
        if self._is_renewal_wanted and self._trial is None:
            self._is_renewal_wanted = False
            self._trial = renewal.Trial()
            self.agents.strangers = {self._trial.pid}
            logger.info("the new code is tried")
        passed = self._trial.passed() if self._trial else None
        if passed is None:
            return False
        if not passed:
            logger.error("the new code does not start: this launcher goes on with the old one")
            return self._drop_trial()
        self._trial = None
        return True

    def _renew(self, server: Server, lock: int) -> None:
        renewal.hold_stops()
        if self._stop_signals:  # it came a moment ago, and the new code would not know
            renewal.hear_stops()
            return
        logger.info("launcher is renewed", agents=len(self.agents))
        self.agents.compare(is_open=True)  # seen a moment ago: the host is missed only after ten seconds
        server.close()
        self._host.close()
        renewal.execute_anew([lock])

    def _drop_trial(self) -> bool:
        if self._trial:
            self._trial.stop()
        self._trial, self._is_renewal_wanted = None, False
        return False

    def _is_over(self, now: float) -> bool:
        if self._drain_until is None or len(self.agents):
            return False
        self._leave_at = self._leave_at or now + LAST_REPORTS_SECONDS
        return not self._host.waiting or now >= self._leave_at

    def _seconds_to_next(self) -> float:
        now = time.monotonic()
        times = [self._next_tick, self.agents.next_step(), self._drain_until]
        coming = [at for at in times if at is not None and at > now]
        return min(coming) - now if coming and self._next_tick > now else 0.0


def remove_old_logs(settings: LauncherSettings) -> None:
    """Remove the sessions' log files that are older than LOG_RETENTION_DAYS."""
    oldest = time.time() - settings.log_retention_days * 24 * 3_600
    for path in settings.log_dir.glob("session_*.log"):
        if path.lstat().st_mtime < oldest:
            path.unlink(missing_ok=True)


def take_lock(settings: LauncherSettings) -> tuple[int, bool]:
    """Become this host's only launcher; the kernel frees the lock when the process ends. Exits when there is one.

    Returns the descriptor that holds the lock, and whether this process held it before it was renewed.
    """
    settings.host_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.host_dir.chmod(0o700)
    path = settings.host_dir / "launcher.lock"
    held = renewal.inherited(lambda descriptor: os.path.samestat(os.fstat(descriptor), path.stat()))
    if held is not None:
        return held, True
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(
            f"another launcher runs for HOST_ID={settings.host_id} in {settings.run_dir}: stop it"
        ) from None
    return lock, False


def run(settings: LauncherSettings, prepare: Callable[[LauncherSettings], image.Starter]) -> None:
    """Be this host's launcher; ``prepare`` loads what agents are started from."""
    drop_secrets()
    keep_to_itself()
    if renewal.is_check():
        prepare(settings)
        return
    path = settings.launcher_socket
    if len(os.fsencode(path)) > PATH_BYTES:
        raise SystemExit(
            f"the socket's path has more than {PATH_BYTES} bytes, set a shorter RUN_DIR or HOST_ID: {path}"
        )
    lock, is_renewed = take_lock(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, settings.max_bots + SPARE_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    launcher = Launcher(settings)
    launcher.hear_signals()
    # Before the image, which takes seconds: what an earlier launcher left is never without an owner for long.
    launcher.agents.look_at_states()
    if is_renewed:
        launcher.agents.replace_old()
    launcher.run(prepare(settings), lock)


def main() -> None:
    """Run the program."""
    settings = read(LauncherSettings)
    logs.configure(settings, program="launcher")
    run(settings, image.prepare)


if __name__ == "__main__":
    main()
