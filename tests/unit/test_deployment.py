"""What stops a host waits for its calls: supervisord, the container, compose and systemd agree with DRAIN_TIMEOUT."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # it ships none
from pydantic_settings import BaseSettings

from backend.agent.confinement import NOT_FOR_AGENTS
from backend.common.settings import PROGRAMS, ApiSettings, LauncherSettings, WorkerSettings
from backend.local import embedded
from backend.local.__main__ import LAUNCHER_STOP_SECONDS
from backend.local.supervision import OTHERS_STOP_SECONDS

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600}


def only(pattern: str, text: str) -> str:
    """What the pattern's group holds, where it is found once."""
    (found,) = re.findall(pattern, text)
    return str(found)


def seconds(duration: str) -> int:
    """Read '62m'."""
    return int(duration.rstrip("smh")) * UNIT_SECONDS[duration.lstrip("0123456789")]


@pytest.fixture(scope="module")
def programs() -> configparser.RawConfigParser:
    parsed = configparser.RawConfigParser()
    parsed.read(ROOT / "supervisord.conf")
    return parsed


@pytest.fixture(scope="module")
def unit() -> str:
    return (ROOT / "deploy" / "greenroom.service").read_text()


def test_calls_are_drained_for_an_hour_in_production_and_for_two_seconds_on_a_laptop(unit: str) -> None:
    assert only(r"DRAIN_TIMEOUT=(\d+)", DOCKERFILE) == "3600"
    assert only(r"Environment=.*DRAIN_TIMEOUT=(\d+)", unit) == "3600"
    assert LauncherSettings.model_fields["drain_timeout_seconds"].default == 2


def test_supervisord_lets_the_launcher_drain_and_stops_it_first(programs: configparser.RawConfigParser) -> None:
    launcher = programs["program:launcher"]
    assert launcher["stopwaitsecs"] == "%(ENV_LAUNCHER_STOP_SECONDS)s"  # DRAIN_TIMEOUT and the kill ladder
    others = [programs[name] for name in programs.sections() if name.startswith("program:") and name[8:] != "launcher"]
    assert all(int(other["priority"]) < int(launcher["priority"]) for other in others)
    assert sum(int(other["stopwaitsecs"]) for other in others) <= OTHERS_STOP_SECONDS
    assert LAUNCHER_STOP_SECONDS > 4  # SIGTERM, 2 s, SIGKILL, and 2 s for the last reports


def secrets(program: type[BaseSettings]) -> set[str]:
    """Its variables that hold a secret, say where one is, or may: an address of Redis has its password."""
    fields = program.model_fields.values()
    held = {str(field.validation_alias) for field in fields if "SecretStr" in str(field.annotation)}
    held |= {"API_KEYS_FILE", "REDIS_URL", "BROKER_URL"}
    return held & {str(field.validation_alias) for field in fields}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("api", ApiSettings), ("worker", WorkerSettings), ("beat", WorkerSettings), ("launcher", LauncherSettings)],
)
def test_a_program_gets_no_secret_that_it_does_not_read(
    programs: configparser.RawConfigParser, name: str, settings: type[BaseSettings]
) -> None:
    taken = set(re.findall(r"-u (\w+)", programs[f"program:{name}"]["command"]))
    assert taken == set().union(*map(secrets, PROGRAMS)) - secrets(settings)
    assert name != "launcher" or taken == set(NOT_FOR_AGENTS)  # of one that was started otherwise


def test_an_embedded_server_gets_no_secret_at_all() -> None:
    assert set(embedded.SECRETS) == set().union(*map(secrets, PROGRAMS))


def test_nobody_who_stops_the_house_is_less_patient_than_the_launcher(unit: str) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    needed = 3_600 + LAUNCHER_STOP_SECONDS + OTHERS_STOP_SECONDS
    patience = {
        "compose": seconds(compose["services"]["greenroom"]["stop_grace_period"]),
        "docker": int(only(r"docker stop --time (\d+)", DOCKERFILE)),
        "systemd": seconds(only(r"TimeoutStopSec=(\w+)", unit)),
    }
    assert {name: given for name, given in patience.items() if given <= needed} == {}


def test_systemd_stops_the_first_process_only_and_reloads_by_renewal(unit: str) -> None:
    assert only(r"(?m)^KillMode=(\w+)$", unit) == "mixed"  # SIGTERM for all would end agents in their calls
    assert "signal HUP launcher api" in unit


def test_the_container_has_the_command_greenroom(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "backend", tmp_path / "backend", ignore=shutil.ignore_patterns("node_modules", "__pycache__")
    )
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    subprocess.run(only(r"(?m)^RUN (\.venv/bin/python .+)$", DOCKERFILE), shell=True, cwd=tmp_path, check=True)  # noqa: S602
    command = (python.parent / "greenroom", "call", "--help")
    told = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    assert "--burst" in told.stdout
