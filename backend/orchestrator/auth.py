"""Who calls: an API key, the page's cookie, or anyone on this machine while no keys are set."""

import hmac
import secrets
import time
from dataclasses import dataclass

from backend.common.settings import ApiSettings
from backend.orchestrator.errors import UnauthorizedError
from backend.orchestrator.keyring import Keyring

COOKIE = "greenroom"
COOKIE_SECONDS = 3_600
"""Renewed by each visit and each start. The longest call comes on top: who could start it can also end it."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """Who makes a request."""

    scope: str
    """Keeps the users and start keys of different clients apart; '' while no keys are set."""
    page: str = ""
    """The page's visitor, when the cookie came with the request."""
    is_trusted: bool = True
    """An API key, or any caller while no keys are set: may see every session. Else only the page's own ones."""
    label: str = ""
    """How logs show the API key: its name, if it has one, and the beginning of its hash."""


class Doorkeeper:
    """Checks keys and cookies."""

    def __init__(self, settings: ApiSettings) -> None:
        self._keyring = Keyring(settings)
        self._has_keys, self._has_page = settings.has_keys, settings.has_page
        self.cookie_seconds = COOKIE_SECONDS + settings.session_timeout_ms // 1000
        # Derived, so that no further secret is to be kept, and so that the cookie tells nothing of LiveKit's.
        secret = settings.livekit_api_secret.get_secret_value().encode()
        self._cookie_key = hmac.digest(secret, b"greenroom page cookie", "sha256")

    def admit(self, authorization: str | None, cookie: str | None) -> Client:
        """Find out who calls.

        Raises: UnauthorizedError
        """
        visitor = self.read_cookie(cookie) if cookie and self._has_page else ""
        if not self._has_keys:
            return Client(scope="", page=visitor)
        if authorization is None:
            if visitor:
                return Client(scope="page", page=visitor, is_trusted=False)
            over = "This visit is over: reload the page, or send" if cookie and self._has_page else "Send"
            raise UnauthorizedError(f"{over} an API key: 'Authorization: Bearer <key>'")
        scheme, _, shown = authorization.partition(" ")
        key = self._keyring.find(shown.strip())
        if scheme.lower() != "bearer" or key is None:
            raise UnauthorizedError("This API key is not known: check 'Authorization: Bearer <key>'")
        return Client(scope=key.scope, page=visitor, label=str(key))

    def new_cookie(self, visitor: str = "") -> str:
        """Sign a visitor, a new one unless given: id, expiry in unix seconds, signature."""
        text = f"{visitor or secrets.token_hex(12)}.{int(time.time()) + self.cookie_seconds}"
        return f"{text}.{self._sign(text)}"

    def read_cookie(self, cookie: str) -> str:
        """The visitor's id; '' for a cookie that is forged, cut or expired."""
        text, _, signature = cookie.rpartition(".")
        visitor, _, expiry = text.partition(".")
        is_ours = hmac.compare_digest(self._sign(text).encode(), signature.encode())
        return visitor if is_ours and expiry.isdigit() and int(expiry) > time.time() else ""

    def _sign(self, text: str) -> str:
        return hmac.digest(self._cookie_key, text.encode(), "sha256").hex()
