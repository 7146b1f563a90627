"""``make audit``: look the locked packages up among known vulnerabilities; where that data cannot be had, say so.

Exits with 1 when a package has a known one, or when there is data but a lock was not compared with it: no answer is no
good answer. ``make check`` does it too.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from backend.local.setup import AUDITOR, DEVELOPMENT, RUNTIME
from backend.local.steps import say

ACCEPTED: dict[str, str] = {}
"""Identifiers of vulnerabilities that do not concern us, each with the reason."""
REQUEST_SECONDS, ALL_SECONDS = 5, 120
PROBE = "pip==25.0"
"""A package that the data knows for certain: without it there is no data."""


def main() -> int:
    """Audit what runs and what tests; returns the exit code."""
    if not any(one.get("vulns") is not None for one in _audit(PROBE)):
        say("not audited: the data on vulnerabilities cannot be had from here. Run `make audit` where it can.")
        return 0
    found, left_out, is_whole = list[str](), 0, True
    for lock in (RUNTIME, DEVELOPMENT):
        packages = _audit(_pinned(lock))
        if not packages:
            is_whole = False
            say(f"{lock.name} could not be audited: try again")
        for package in packages:
            left_out += "skip_reason" in package
            known = [one for one in package.get("vulns", []) if not ACCEPTED.keys() & {one["id"], *one["aliases"]}]
            found += [f"{package['name']} {package['version']}: {one['id']}, {_fix(one)}" for one in known]
    for line in found:
        say(line)
    if left_out:
        say(f"{left_out} packages could not be looked up")
    return 0 if is_whole and not found else 1


def _pinned(lock: Path) -> str:
    return "\n".join(line.split(" ")[0] for line in lock.read_text().splitlines() if "==" in line and line[0].isalnum())


def _audit(requirements: str) -> list[dict[str, Any]]:
    """What is known of each package; [] where nothing can be asked."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.write(requirements)
        listed.flush()
        command: list[str | Path] = [
            AUDITOR / "bin" / "python",
            "-m",
            "pip_audit",
            "-r",
            listed.name,
            "--no-deps",
            "--disable-pip",
        ]
        options = ["--format", "json", "--progress-spinner", "off", "--timeout", str(REQUEST_SECONDS)]
        try:
            done = subprocess.run(
                [*command, *options], capture_output=True, text=True, check=False, timeout=ALL_SECONDS
            )
            answer: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):  # no answer: said by who asked
            return []
    return answer


def _fix(vulnerability: dict[str, Any]) -> str:
    versions = vulnerability.get("fix_versions") or []
    return f"mended in {', '.join(versions)}" if versions else "not mended yet"


if __name__ == "__main__":
    sys.exit(main())
