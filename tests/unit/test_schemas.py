"""What a request may hold."""

from typing import Any

import pytest
from pydantic import ValidationError

from backend.orchestrator import schemas
from backend.orchestrator.schemas import METADATA_BYTES, StartRequest


def start(**fields: Any) -> StartRequest:
    return StartRequest.model_validate({"userName": "Ann"} | fields)


def test_only_a_name_is_needed() -> None:
    given = start().model_dump(exclude_none=True)
    assert given == {"user_name": "Ann"}


def test_null_is_the_same_as_nothing() -> None:
    optional = ("voiceId", "openingLine", "systemPrompt", "userId", "maxDurationSeconds", "metadata")
    assert start(**dict.fromkeys(optional)) == start()


@pytest.mark.parametrize("text", ["\t", "a\nb", "\u2028", "e\u0301", "👩‍👩‍👧", "اَلْعَرَبِيَّةُ", "x" * 500])
def test_what_people_write_is_text(text: str) -> None:
    assert start(openingLine=text).opening_line == text


@pytest.mark.parametrize("letter", ["\x00", "\x08", "\x0b", "\x1b", "\x7f", "\x85", "\x9f", "\ud800"])
@pytest.mark.parametrize("field", ["openingLine", "systemPrompt", "userName"])
def test_what_no_voice_could_speak_is_not(field: str, letter: str) -> None:
    with pytest.raises(ValidationError, match=r"control characters|unicode"):
        start(**{field: f"a{letter}b"})


@pytest.mark.parametrize("letter", ["\t", "\n", "\r", "\u2028", "\u2029"])
def test_a_name_is_one_line(letter: str) -> None:
    with pytest.raises(ValidationError, match="line breaks"):
        start(userName=f"a{letter}b")


@pytest.mark.parametrize("blank", [" ", "\u00a0", "\u3000 "])
def test_a_name_is_not_blank(blank: str) -> None:
    with pytest.raises(ValidationError, match="blank"):
        start(userName=blank)


def test_an_opening_line_may_be_empty_and_is_then_meant_so() -> None:
    assert start(openingLine="").opening_line == ""


@pytest.mark.parametrize("value", [1, 2**63, -1, 1.5, True, None, "x", [1, [2]], {"a": {"b": None}}, "é" * 100])
def test_metadata_may_be_any_small_json(value: Any) -> None:
    assert start(metadata={"k": value}).metadata == {"k": value}


@pytest.mark.parametrize(
    "value", ["x" * METADATA_BYTES, "é" * (METADATA_BYTES // 2), float("inf"), "\ud800", b"x", {1}]
)
def test_metadata_that_is_large_or_no_json_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        start(metadata={"k": value})


def test_errors_never_show_what_was_sent() -> None:
    """The handler words them from these: no value may stand in the message itself."""
    sent = "the-prompt-nobody-may-see"
    wrong = {"userName": [sent], "systemPrompt": {"x": sent}, "openingLine": sent * 40, "maxDurationSeconds": sent}
    with pytest.raises(ValidationError) as caught:
        StartRequest.model_validate(wrong)
    messages = [problem["msg"] for problem in caught.value.errors()]
    assert len(messages) == 4
    assert not [message for message in messages if sent in message]


@pytest.mark.parametrize(
    "model", [model for model in vars(schemas).values() if isinstance(model, type) and hasattr(model, "model_config")]
)
def test_an_example_is_what_it_is_an_example_of(model: Any) -> None:
    example = (model.model_config.get("json_schema_extra") or {}).get("example")
    if example is not None:
        model.model_validate(example)
    else:
        assert model.__name__ in ("BaseModel", "Schema", "Reply", "EndDetails")
