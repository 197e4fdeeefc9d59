"""Cookies of the server's own pages: for this host alone, out of reach of scripts, not sent with
forms of other sites.

Laws:
- A cookie is signed by this server, with its name: one that is not is none, and nothing is looked
  up for it. So nobody can lay a cookie of their own making into a browser, nor one under another
  name.
- The key of these signatures is made of the server's signing key, and is for nothing else. When
  that key is another one, the cookies of before have ended.
- Over https their names begin with `__Host-`: browsers then take them from this host only, over
  https, and never from one beside it. That alone keeps others from laying a cookie that this server
  has made for themselves into somebody's browser; over http nothing does.

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
"""What the cookie says, and 256 bits by which we know that we have set it."""
_PURPOSE: Final = b"mahalla: cookies of the server's own pages"


class Cookies:
    """Reads and writes them."""

    def __init__(self, public_baseurl: str | None, key: SigningKey) -> None:
        """`public_baseurl`: where people reach the server; without it each request says whether it
        came by TLS. `key`: what only this server knows, the same on all of its nodes."""
        self._secure = None if public_baseurl is None else public_baseurl.startswith("https://")
        self._secret = hmac.digest(key.seed, _PURPOSE, sha256)

    def find(self, context: RequestContext, name: str) -> str | None:
        """The value of a cookie that we have set; None where there is none."""
        full = self._full_name(context, name)
        # another host of the domain can lay one of the same name beside ours: that hides nothing
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
        """The header's value that sets a cookie, for so long or until the browser is closed.
        `value`: 16 to 200 letters, digits, `-` and `_`."""
        return self._header(
            context, name, f"{value}.{self._sign(self._full_name(context, name), value)}", seconds
        )

    def remove(self, context: RequestContext, name: str) -> str:
        """The header's value that takes a cookie away."""
        return self._header(context, name, "", 0)

    def _header(self, context: RequestContext, name: str, value: str, seconds: int | None) -> str:
        lasts = "" if seconds is None else f"; Max-Age={seconds}"
        secure = "; Secure" if self._is_secure(context) else ""
        return f"{self._full_name(context, name)}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{lasts}"

    def _read(self, full_name: str, sent: str) -> str | None:
        match = _VALUE.fullmatch(sent)
        if match is None or not hmac.compare_digest(match[2], self._sign(full_name, match[1])):
            return None
        return match[1]

    def _sign(self, full_name: str, value: str) -> str:
        # neither has a "=" in it
        signature = hmac.digest(self._secret, f"{full_name}={value}".encode("ascii"), sha256)
        return urlsafe_b64encode(signature).decode("ascii").rstrip("=")

    def _full_name(self, context: RequestContext, name: str) -> str:
        return f"__Host-{name}" if self._is_secure(context) else name

    def _is_secure(self, context: RequestContext) -> bool:
        return context.is_secure if self._secure is None else self._secure
