"""The variables that say who gets in: keys, the page, proxies, origins, how often."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, FilePath, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode

from backend.common.variables import split, variable

_RATE = re.compile(r"[1-9]\d{0,6} ?/ ?(\d{1,3} ?)?(second|minute|hour|day)s?", re.IGNORECASE)


def _rates(value: str) -> str:
    if not all(_RATE.fullmatch(part.strip()) for part in value.split(";")):
        raise ValueError("rates such as 100/minute or 20/second;5000/hour")
    return value


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value)) if "/" in value else str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("addresses and networks such as 10.0.0.7,10.1.0.0/16,fd00::/8") from None


def _origin(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@*]+", value):
        raise ValueError("origins such as https://app.example.com: a scheme and a host, no path and no *")
    return value.lower()


def _readable(value: Path) -> Path:
    try:
        value.read_text()
    except (OSError, UnicodeDecodeError):
        raise ValueError("a text file that cannot be read") from None
    return value


Rates = Annotated[str, AfterValidator(_rates)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], NoDecode, BeforeValidator(split)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(split)]


class DoorSettings(BaseSettings):
    """What the API alone needs to know of who may call it."""

    host: str | None = variable("HOST", "address to bind; unset: 127.0.0.1 without API_KEYS, else 0.0.0.0", None)
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split)] = variable(
        "API_KEYS", "keys that clients must show, or name=key, separated by commas; unset: loopback only", ()
    )
    api_keys_file: Annotated[FilePath, AfterValidator(_readable)] | None = variable(
        "API_KEYS_FILE", "a file with further keys, one a line; read again when it changes", None
    )
    rate_limit: Rates | None = variable("RATE_LIMIT", "calls of one API key, such as 50/second; unset: no limit", None)
    page_rate_limit: Rates = variable(
        "PAGE_RATE_LIMIT", "starts from one address by the page's visitors, where keys are set", "10/minute"
    )
    page: Literal["auto", "on", "off"] = variable(
        "PAGE", "the page at /: on, off, or auto (on while API_KEYS is unset)", "auto"
    )
    trusted_proxies: Networks = variable(
        "TRUSTED_PROXIES", "addresses or networks whose X-Forwarded-For and -Proto are believed", ()
    )
    cors_origins: Origins = variable("CORS_ORIGINS", "origins whose scripts may read the answers; unset: none", ())

    @model_validator(mode="after")
    def _keys_guard_the_network(self) -> "DoorSettings":
        if self.host and not self.has_keys and self.host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(f"HOST={self.host} without API_KEYS would let anyone start calls: set API_KEYS")
        return self

    @property
    def has_keys(self) -> bool:
        """Whether callers must show a key; an empty API_KEYS_FILE lets nobody in."""
        return bool(self.api_keys or self.api_keys_file)

    @property
    def bind_address(self) -> str:
        """Without keys anyone who reaches the port may start calls: then only this machine."""
        return self.host or ("0.0.0.0" if self.has_keys else "127.0.0.1")  # noqa: S104  # keys guard it

    @property
    def has_page(self) -> bool:
        """Whether the page is served."""
        return self.page == "on" or (self.page == "auto" and not self.has_keys)
