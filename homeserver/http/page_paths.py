"""Which addresses are those of pages for people, and not of an API for programs.

Laws:
- Where people decide, no script of another site reads along: pages of this server's own paths have
  no cross-origin headers (RFC 9700 section 2.6, of the authorization endpoint). The paths of the
  Matrix APIs keep them, pages among them too.
"""

import re
from typing import Final

from homeserver.http.head import Head

_OWN: Final = b"/_mahalla/"
_PAGE: Final = re.compile(
    rb"/_mahalla/(?!admin/|client/|confirm_number|oauth/(?!authorize))"
    rb"|/_synapse/client/(?!oidc/backchannel_logout)"
    rb"|/_matrix/static/"
    rb"|/_matrix/client/[^/]+/(?:auth/[^/]+/fallback/web|login/sso/redirect)"
)


def is_looked_at(head: Head, path: bytes) -> bool:
    """Whether somebody looks at a page there with a browser."""
    return _PAGE.match(path) is not None and b"text/html" in head.last.get(b"accept", b"")


def is_open(path: bytes) -> bool:
    """Whether scripts of other sites may read what is answered there."""
    return not path.startswith(_OWN) or _PAGE.match(path) is None
