"""Logs: one line each, and nothing in it that is nobody's business."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from backend.agent.session_log import SessionLog
from backend.common import logs
from backend.common.settings import CommonSettings

JSON_WEB_TOKEN = ".".join(["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiJjYWxsZXIifQ", "c2lnbmF0dXJl_-x"])
PROMPT = "the-prompt-nobody-may-see"


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logger.remove()
    logging.captureWarnings(False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def configure(log_format: str, **changes: str) -> None:
    settings = CommonSettings.model_validate({"host_id": "host-1", "log_format": log_format} | changes)
    logs.configure(settings, program="api")


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_json_line_has_time_level_sentence_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    logger.bind(session_id="s1").info("agent exited", agent_id="a1", exit_code=-9, nothing=None)
    (line,) = map(json.loads, said(capsys))
    assert line.pop("time").count(":") >= 2
    assert line == {
        "level": "INFO",
        "message": "agent exited",
        "program": "api",
        "host_id": "host-1",
        "session_id": "s1",
        "agent_id": "a1",
        "exit_code": -9,
    }


@pytest.mark.parametrize("value", ["a\nb", '"', "\x00", "\ud800", "👋", b"x", {1}, float("nan"), object()])
def test_whatever_a_field_holds_a_json_line_is_one_line_that_parses(
    capsys: pytest.CaptureFixture[str], value: object
) -> None:
    configure("json")
    logger.info("a sentence", field=value)
    (line,) = said(capsys)
    assert "field" in json.loads(line)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tokens_are_cut_out_wherever_they_stand(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure(log_format)
    logger.warning("connecting", url=f"ws://h/rtc?access_token={JSON_WEB_TOKEN}&x=1")
    logging.getLogger("uvicorn").warning("401 for %s", JSON_WEB_TOKEN)
    logger.error(f"bad token {JSON_WEB_TOKEN}")
    lines = said(capsys)
    assert len([line for line in lines if "<token>" in line]) == 3
    assert not [line for line in lines if "eyJ" in line]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_stack_shows_frames_and_kinds_and_neither_messages_nor_values(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure(log_format)
    system_prompt = PROMPT

    def fails(text: str) -> None:
        try:
            raise ExceptionGroup(text, [RuntimeError(text)])
        except ExceptionGroup as error:
            error.add_note(text)
            raise ValueError(text) from error

    try:
        fails(system_prompt)
    except ValueError:
        logger.exception("it failed")
    text = "\n".join(said(capsys))
    kinds = [text.rindex(kind) for kind in ("ExceptionGroup", "RuntimeError", "ValueError")]
    assert kinds == sorted(kinds), "from the cause to the effect"
    assert "in fails" in text
    assert PROMPT not in text


def test_a_stack_of_exceptions_that_led_to_each_other_comes_to_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console")
    first, second = ValueError(), TypeError()
    first.__context__, second.__context__ = second, first
    logger.opt(exception=first).error("it failed")
    assert said(capsys)[-1] == "ValueError"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_is_said_in_braces_is_said_as_it_is(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure(log_format)
    logging.getLogger("uvicorn.error").error("{0} {name} {'a': 1} %s", "{x}")
    (line,) = said(capsys)
    assert "{0} {name} {'a': 1} {x}" in line


def test_libraries_are_heard_from_warnings_up_and_we_from_info_up(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console")
    chatty = logging.getLogger("celery.chatty")
    chatty.setLevel(logging.INFO)
    chatty.info("hello")
    chatty.warning("slow")
    logger.debug("too much")
    logger.info("ours")
    lines = said(capsys)
    assert [line.split(": ")[1].split()[0] for line in lines] == ["slow", "ours"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_of_a_librarys_line_only_the_place_is_logged_because_it_may_quote_the_call(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure(log_format, log_level="DEBUG")
    says = f"not speaking [{PROMPT}]"
    as_pipecat = {"__name__": "pipecat.services.tts_service", "logger": logger.bind(session_id="s1", text=PROMPT)}
    exec(f"logger.debug({says!r}); logger.info({says!r}); logger.warning({says!r})", as_pipecat)  # noqa: S102
    logging.getLogger("asyncio").error("never retrieved: %r", ValueError(PROMPT), exc_info=ValueError(PROMPT))
    warnings.simplefilter("default")  # pytest puts it back
    warnings.warn(PROMPT, stacklevel=1)
    text = capsys.readouterr().err
    assert PROMPT not in text
    assert "pipecat.services.tts_service:1" in text
    assert "s1" in text
    assert "asyncio.test_logs:" in text
    assert "ValueError" in text
    assert "py.warnings" in text
    assert text.count("a library complains") == 3


def test_a_full_disk_brings_no_librarys_words_to_light(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configure("console")
    (tmp_path / "s1.log").symlink_to("/dev/full")
    log = SessionLog(CommonSettings.model_validate({"log_dir": tmp_path}))
    log.begin("s1")
    exec(f"logger.warning('{PROMPT}')", {"__name__": "pipecat.services.tts_service", "logger": logger})  # noqa: S102
    log.close()
    (line,) = said(capsys)
    assert PROMPT not in line


def test_the_program_that_python_m_runs_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console")
    exec("logger.info('launcher is ready')", {"__name__": "__main__", "logger": logger})  # noqa: S102
    assert "launcher is ready" in capsys.readouterr().err


def test_a_line_for_people_tells_who_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console")
    logger.info("session ended", session_id="s1", reason="goodbye")
    (line,) = said(capsys)
    assert line.endswith("INFO    api s1: session ended reason=goodbye")


def test_a_field_cannot_write_lines_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console")
    logger.warning("task given up", error="x\n12:00:00 INFO api: session ended")
    assert len(said(capsys)) == 1


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_line_is_written_with_its_end_so_that_agents_can_share_a_pipe(
    monkeypatch: pytest.MonkeyPatch, log_format: str
) -> None:
    written: list[str] = []
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "write", written.append)
    monkeypatch.setattr(sys, "stderr", stderr)
    configure(log_format)
    logger.info("once")
    (line,) = written
    assert line.endswith("\n")


def test_configuring_again_after_a_fork_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console")
    configure("json")
    logger.info("once")
    assert len(said(capsys)) == 1
