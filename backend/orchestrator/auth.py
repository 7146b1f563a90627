"""Who calls: an API key, the page's cookie, or anyone on this machine while no keys are set."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from backend.common.settings import ApiSettings
from backend.orchestrator.errors import UnauthorizedError

COOKIE = "greenroom"
COOKIE_SECONDS = 12 * 3_600


@dataclass(frozen=True, kw_only=True)
class Client:
    """Who makes a request."""

    scope: str
    """Keeps the users and start keys of different clients apart; '' while no keys are set."""
    page: str = ""
    """The page's visitor, when the cookie came with the request."""
    is_trusted: bool = True
    """An API key, or any caller while no keys are set: may see every session. Else only the page's own ones."""


class Doorkeeper:
    """Checks keys and cookies."""

    def __init__(self, settings: ApiSettings) -> None:
        self._digests = [_digest(key.get_secret_value()) for key in settings.api_keys]
        self._has_page = settings.has_page
        # Derived, so that no further secret is to be kept, and so that the cookie tells nothing of LiveKit's.
        secret = settings.livekit_api_secret.get_secret_value().encode()
        self._cookie_key = hmac.digest(secret, b"greenroom page cookie", "sha256")

    def admit(self, authorization: str | None, cookie: str | None) -> Client:
        """Find out who calls.

        Raises: UnauthorizedError
        """
        visitor = self.read_cookie(cookie) if cookie and self._has_page else ""
        if not self._digests:
            return Client(scope="", page=visitor)
        if authorization is None:
            if visitor:
                return Client(scope="page", page=visitor, is_trusted=False)
            raise UnauthorizedError("Send an API key: 'Authorization: Bearer <key>'")
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        # Every key is compared, each in constant time: the time tells neither which nor how much matched.
        known = [hmac.compare_digest(digest, mine) for mine in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            raise UnauthorizedError("This API key is not known: check 'Authorization: Bearer <key>'")
        return Client(scope=digest[:12], page=visitor)

    def new_cookie(self) -> str:
        """Draw a visitor and sign them: id, expiry in unix seconds, signature."""
        text = f"{secrets.token_hex(12)}.{int(time.time()) + COOKIE_SECONDS}"
        return f"{text}.{self._sign(text)}"

    def read_cookie(self, cookie: str) -> str:
        """The visitor's id; '' for a cookie that is forged, cut or expired."""
        text, _, signature = cookie.rpartition(".")
        visitor, _, expiry = text.partition(".")
        is_ours = hmac.compare_digest(self._sign(text).encode(), signature.encode())
        return visitor if is_ours and expiry.isdigit() and int(expiry) > time.time() else ""

    def _sign(self, text: str) -> str:
        return hmac.digest(self._cookie_key, text.encode(), "sha256").hex()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
