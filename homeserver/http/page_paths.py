"""Distinguishes the paths of pages for people from the paths of APIs.

Laws:

- Pages below `/_mahalla/`, such as the page on which a user allows a client, have no cross-origin
  headers. So a script of another site cannot read them (RFC 9700 section 2.6, on the authorization
  endpoint).
- APIs have these headers, and so have the pages below `/_matrix/` and `/_synapse/`.
"""

import re
from typing import Final

from homeserver.http.request_head import RequestHead

_OWN: Final = b"/_mahalla/"
_PAGE: Final = re.compile(
    rb"/_mahalla/(?!admin/|client/|confirm_number|oauth/(?!authorize))"
    rb"|/_synapse/client/(?!oidc/backchannel_logout)"
    rb"|/_matrix/static/"
    rb"|/_matrix/client/[^/]+/(?:auth/[^/]+/fallback/web|login/sso/redirect)"
)


def is_page_request(head: RequestHead, path: bytes) -> bool:
    """Return whether a browser shows the response as a page."""
    return _PAGE.match(path) is not None and b"text/html" in head.by_name.get(b"accept", b"")


def allows_cors(path: bytes) -> bool:
    """Return whether scripts of other sites may read the response."""
    return not path.startswith(_OWN) or _PAGE.match(path) is None
