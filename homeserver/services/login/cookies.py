"""Cookies of the server's own pages: for this host only, `HttpOnly`, `SameSite=Lax`.

Laws:
- This server signs the value of a cookie together with the cookie's name, and ignores a cookie
  without a valid signature. So nobody can invent a cookie, or use the value of one cookie under
  another name. The check needs no query.
- The key of these signatures is derived from the server's signing key and has no other use. A new
  signing key invalidates all cookies.
- Over https the names of cookies start with `__Host-`: browsers accept them only from this host
  over https, never from a sibling host. Only this prefix prevents an attacker from storing their
  own valid cookie in the browser of somebody else. Over http nothing prevents that.

spec: RFC 6265, RFC 6265bis section 4.1.3
"""

import hmac
import re
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Final

from federation.api.request import RequestContext
from federation.protocol.signing import SigningKey

_VALUE: Final = re.compile(r"([0-9A-Za-z_-]{16,200})\.([0-9A-Za-z_-]{43})")
"""The value, and a signature of 256 bits."""
_PURPOSE: Final = b"mahalla: cookies of the server's own pages"


class Cookies:
    """Reads, sets and removes signed cookies."""

    def __init__(self, *, public_baseurl: str | None, key: SigningKey) -> None:
        """`public_baseurl`: the public URL of the server; without it each request tells whether it
        came over TLS. `key`: the server's signing key, the same on all nodes."""
        self._secure = None if public_baseurl is None else public_baseurl.startswith("https://")
        self._secret = hmac.digest(key.seed, _PURPOSE, sha256)

    def find(self, context: RequestContext, name: str) -> str | None:
        """Return the value of a cookie with a valid signature; None if there is none."""
        full = self._full_name(context, name)
        # another host of the domain can set a cookie of the same name: skip it
        return next(
            (
                value
                for key, sent in context.cookies
                if key == full and (value := self._read(full, sent))
            ),
            None,
        )

    def make(
        self, context: RequestContext, name: str, value: str, *, seconds: int | None = None
    ) -> str:
        """Return the header value that sets a cookie.

        `seconds`: its lifetime; None: until the browser is closed. `value`: 16 to 200 of
        `A-Za-z0-9_-`.
        """
        return self._header(
            context, name, f"{value}.{self._sign(self._full_name(context, name), value)}", seconds
        )

    def remove(self, context: RequestContext, name: str) -> str:
        """Return the header value that deletes a cookie."""
        return self._header(context, name, "", 0)

    def _header(self, context: RequestContext, name: str, value: str, seconds: int | None) -> str:
        max_age = "" if seconds is None else f"; Max-Age={seconds}"
        secure = "; Secure" if self._is_secure(context) else ""
        full = self._full_name(context, name)
        return f"{full}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{max_age}"

    def _read(self, full_name: str, sent: str) -> str | None:
        match = _VALUE.fullmatch(sent)
        if match is None or not hmac.compare_digest(match[2], self._sign(full_name, match[1])):
            return None
        return match[1]

    def _sign(self, full_name: str, value: str) -> str:
        # neither contains a "=", so the joined text is unambiguous
        signature = hmac.digest(self._secret, f"{full_name}={value}".encode("ascii"), sha256)
        return urlsafe_b64encode(signature).decode("ascii").rstrip("=")

    def _full_name(self, context: RequestContext, name: str) -> str:
        return f"__Host-{name}" if self._is_secure(context) else name

    def _is_secure(self, context: RequestContext) -> bool:
        return context.is_secure if self._secure is None else self._secure
