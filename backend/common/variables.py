"""The kinds of values that environment variables hold, and how one is described."""

import importlib.util
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

# A unix socket's path may have 107 bytes, and the host's id is part of it.
_HOST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def _host_id(value: str) -> str:
    if not _HOST_ID.fullmatch(value):
        raise ValueError("a host name: 1 to 63 letters, digits, dots, dashes or underscores")
    return value


def split(value: object) -> object:
    """Turn a list with commas into a tuple."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _url(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(rf"({'|'.join(schemes)})://\S+", value):
            raise ValueError(f"an address that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value.rstrip("/")

    return AfterValidator(check)


def _redis_url(value: str) -> str:
    if not re.fullmatch(r"rediss?://[^/?#\s]+(/\d*)?(\?\S*)?", value):
        raise ValueError("an address such as redis://localhost:6379/0")
    return value.rstrip("/")


def has_package(module: str) -> bool:
    """Whether the package that would hold this module is there; nothing is imported."""
    name = module.partition(".")[0]
    return name.isidentifier() and importlib.util.find_spec(name) is not None


HostId = Annotated[str, AfterValidator(_host_id)]
WebUrl = Annotated[str, _url("ws", "wss", "http", "https")]
HttpUrl = Annotated[str, _url("http", "https")]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]


def variable(name: str, text: str, default: Any = ..., **limits: Any) -> Any:
    """Describe one variable; ``text`` is its line in the documentation. No default: it must be set."""
    return Field(default, validation_alias=name, description=text, **limits)
