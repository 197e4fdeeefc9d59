"""Cookies of the server's own pages: for this host alone, out of reach of scripts, not sent with forms of other sites.

Over https their names begin with `__Host-`: browsers then take them from this host only, and never from one beside it.

spec: RFC 6265, RFC 6265bis section 4.1.3
"""

import re
from typing import Final

from federation.protocol.endpoint import RequestContext

_VALUE: Final = re.compile(r"[0-9A-Za-z_-]{16,200}")


class Cookies:
    """Reads and writes them."""

    def __init__(self, public_baseurl: str | None) -> None:
        """`public_baseurl`: where people reach the server; without it each request says whether it came by TLS."""
        self._secure = None if public_baseurl is None else public_baseurl.startswith("https://")

    def find(self, context: RequestContext, name: str) -> str | None:
        """The value of a cookie of ours; None where there is none that can be."""
        full = self._full_name(context, name)
        found = next((value for key, value in context.cookies if key == full), None)
        return found if found is not None and _VALUE.fullmatch(found) else None

    def make(self, context: RequestContext, name: str, value: str, *, seconds: int | None = None) -> str:
        """The header's value that sets a cookie, for so long or until the browser is closed. `value`: 16 to 200 letters,
        digits, `-` and `_`."""
        lasts = "" if seconds is None else f"; Max-Age={seconds}"
        secure = "; Secure" if self._is_secure(context) else ""
        return f"{self._full_name(context, name)}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{lasts}"

    def remove(self, context: RequestContext, name: str) -> str:
        """The header's value that takes a cookie away."""
        return self.make(context, name, "", seconds=0)

    def _full_name(self, context: RequestContext, name: str) -> str:
        return f"__Host-{name}" if self._is_secure(context) else name

    def _is_secure(self, context: RequestContext) -> bool:
        return context.is_secure if self._secure is None else self._secure
