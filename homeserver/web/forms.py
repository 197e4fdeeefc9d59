"""Parses forms of pages and protects them against CSRF.

Each form has a token derived from a cookie: the session cookie, or a cookie made for this purpose.
Another site can neither read the cookie nor compute the token, so its forms are refused.
"""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from federation.api.request import RequestContext
from homeserver.services.login.browser_sessions import COOKIE_NAME
from homeserver.services.login.cookies import Cookies
from homeserver.services.tokens.secret_tokens import SecretGenerator

VISITOR_COOKIE: Final = "mahalla_visitor"
TOKEN_FIELD: Final = "form_token"
MAX_BODY: Final = 16384
"""The `max_body` of endpoints that take a form, in bytes."""
_MAX_FIELDS: Final = 60


class FormToken(msgspec.Struct, frozen=True):
    """The CSRF token for a page with forms."""

    text: str
    """The value of the hidden field `TOKEN_FIELD`."""
    cookies: tuple[str, ...]
    """The cookies to set with the response (`Response.cookies`)."""


class Forms:
    """Makes and checks CSRF tokens."""

    def __init__(self, *, cookies: Cookies, secret_text: SecretGenerator) -> None:
        self._cookies = cookies
        self._secret_text = secret_text

    def token(self, context: RequestContext) -> FormToken:
        """Return the token for forms in the response to this request."""
        secret = self._secret(context)
        if secret is not None:
            return FormToken(_token_of(secret), ())
        secret = self._secret_text.browser_token()
        return FormToken(_token_of(secret), (self._cookies.make(context, VISITOR_COOKIE, secret),))

    def parse(self, context: RequestContext, body: bytes) -> Mapping[str, str] | None:
        """Parse a form; None if its token is missing, wrong or outdated."""
        try:
            pairs = parse_qsl(
                body.decode("utf-8"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=_MAX_FIELDS,
            )
        except ValueError:
            return None
        fields = {name: value.replace("\0", "") for name, value in pairs}
        secret = self._secret(context)
        if secret is None:
            return None
        sent_token = fields.get(TOKEN_FIELD, "").encode("utf-8", "surrogatepass")
        return fields if hmac.compare_digest(sent_token, _token_of(secret).encode()) else None

    def _secret(self, context: RequestContext) -> str | None:
        return self._cookies.find(context, COOKIE_NAME) or self._cookies.find(
            context, VISITOR_COOKIE
        )


def _token_of(secret: str) -> str:
    return urlsafe_b64encode(hmac.digest(secret.encode(), b"form", "sha256")).decode().rstrip("=")
