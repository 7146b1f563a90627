"""make audit: what it says of what pip-audit found, and of what it could not ask."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from backend.local import audit

KNOWN = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": ""}


@pytest.fixture
def _pip_audit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: dict[str, Any]) -> None:
    """Put a program in pip-audit's place that knows of a package what is in ``answers``, and breaks off at None."""
    script = tmp_path / "pip_audit.py"
    script.write_text(
        "import json, re, sys\n"
        "names = re.findall(r'^([\\w.-]+)==', open(sys.argv[sys.argv.index('-r') + 1]).read(), re.M)\n"
        f"known = json.loads({json.dumps(json.dumps(answers))})\n"
        "found = [{'name': name, 'version': '1'} | known.get(name, known['*']) for name in names]\n"
        "print(json.dumps({'dependencies': found}))\n"
    )
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(audit, "AUDITOR", tmp_path)


@pytest.mark.usefixtures("_pip_audit")
@pytest.mark.parametrize(
    ("answers", "code", "says"),
    [
        ({"*": {"vulns": []}}, 0, ""),
        ({"*": {"vulns": []}, "starlette": {"vulns": [KNOWN]}}, 1, "starlette 1: PYSEC-1, mended in 2.0"),
        ({"*": {"vulns": []}, "starlette": None}, 1, "requirements.lock could not be audited"),
        ({"*": {"skip_reason": "unknown"}}, 0, "not audited"),
        ({"*": {"vulns": []}, "starlette": {"skip_reason": "unknown"}}, 0, "1 packages could not be looked up"),
    ],
)
def test_a_known_vulnerability_or_half_an_audit_fails_and_a_lack_of_data_does_not(
    capsys: pytest.CaptureFixture[str], code: int, says: str
) -> None:
    assert audit.main() == code
    assert says in capsys.readouterr().out


def test_where_pip_audit_cannot_run_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "AUDITOR", tmp_path)
    assert audit.main() == 0
    assert "not audited" in capsys.readouterr().out
